"""Procedural portraits: the height field of a head, lit and painted in front of a background.

Lengths are in units of half a head (crown to chin is 2); x points right and y down. Arrays are
float32 of shape `[size, size]`, colours `[3, size, size]`, linear light from 0 to 1 while painting.
"""

from math import cos, sin
from types import SimpleNamespace

import numpy as np
from scipy.ndimage import gaussian_filter

from dfd_utils.data.sample.face import SKIN_TONES, Face, linear, noise, outer, paint, tone

# The properties of a face: each value is drawn uniformly from its range.
PERSON = {
    "face_width": (0.66, 0.78),
    "jaw": (0.08, 0.32),  # how much narrower the jaw is than the temples
    "ear": (0.07, 0.12),
    "eye_gap": (0.265, 0.32),  # from the middle of the face to the middle of an eye
    "eye_y": (-0.01, 0.07),
    "eye_width": (0.13, 0.165),
    "eye_open": (0.34, 0.56),
    "eye_tilt": (-0.1, 0.2),
    "brow_gap": (0.145, 0.2),
    "brow_width": (0.018, 0.04),
    "brow_arch": (0.3, 1.6),
    "brow_dark": (0.5, 0.95),
    "nose_y": (0.38, 0.47),
    "nose_width": (0.07, 0.115),
    "nose_height": (0.13, 0.24),
    "mouth_y": (0.62, 0.69),
    "mouth_width": (0.18, 0.27),
    "lip_upper": (0.022, 0.055),
    "lip_lower": (0.035, 0.075),
    "lip_red": (0.1, 0.9),
    "cheek": (0.0, 0.07),
    "chin": (0.0, 0.06),
    "skin": (0.0, 1.0),  # along SKIN_TONES
    "ruddy": (-0.04, 0.05),
    "freckles": (-1.5, 1.0),  # none below 0
    "age": (0.0, 1.0),
    "hair_length": (0.0, 1.0),  # long from 0.6 on
    "hairline": (-0.68, -0.42),
    "hair_slant": (-0.3, 0.3),
    "hair_volume": (0.04, 0.2),
    "hair_shade": (0.0, 1.0),
    "baldness": (0.0, 1.0),  # bald from 0.94 on
    "beard": (-2.2, 1.0),  # none below 0
    "glasses": (-0.8, 0.2),  # none below 0
}
# The pose and the light of a face.
SCENE = {
    "roll": (-0.12, 0.12),  # radians
    "yaw": (-0.32, 0.32),
    "pitch": (-0.1, 0.12),
    "scale": (100, 114),  # pixels per unit
    "centre_x": (120, 136),  # pixels
    "centre_y": (124, 136),
    "smile": (-0.03, 0.09),
    "mouth_open": (-0.05, 0.035),  # shut below 0
    "gaze": (-0.25, 0.25),
    "light_x": (-1.1, 1.1),  # radians from the front
    "light_y": (0.05, 0.8),  # radians above
    "light": (0.7, 1.0),
    "ambient": (0.3, 0.5),
    "warmth": (-0.06, 0.1),
}
# The camera, the same for every image.
FOCUS_BLUR = (0.2, 1.3)  # sigma in pixels
SENSOR_NOISE = (0.004, 0.02)  # of 1
EXPOSURE, WHITE_BALANCE = 0.12, 0.035  # standard deviations of the log gain


def draw(ranges: dict[str, tuple], rng: np.random.Generator) -> SimpleNamespace:
    """Draw one value uniformly from each range of `PERSON` or `SCENE`."""
    return SimpleNamespace(**{name: rng.uniform(*ends) for name, ends in ranges.items()})


class Portrait(Face):
    """One portrait; `image()` paints it, `face_x` and `face_y` are its face coordinates."""

    def _lit(self, height, wrap=0.15):
        """Lambert shading of a height field: factors `[3, size, size]` of the albedo."""
        s = self.scene
        slope_y, slope_x = np.gradient(height, self.pixel)
        slope_x, slope_y = np.clip(slope_x, -3, 3), np.clip(slope_y, -3, 3)
        to_x, to_y = sin(s.light_x) * cos(s.light_y), -sin(s.light_y)
        to_z = cos(s.light_x) * cos(s.light_y)
        across = 1 / np.sqrt(1 + slope_x**2 + slope_y**2)
        self.facing = (to_z - slope_x * to_x - slope_y * to_y) * across
        diffuse = np.maximum((self.facing + wrap) * (s.light / (1 + wrap)), 0)
        sky = s.ambient * (0.75 + 0.25 * (1 - slope_y) * across)
        return np.stack([sky + diffuse * (1 + tint) for tint in (s.warmth, 0, -s.warmth)])

    def _shine(self):
        """Highlight of the surface that `_lit` has shaded last."""
        shine = np.maximum(self.facing, 0)
        for _ in range(4):  # to the 16th power
            shine = shine * shine
        return shine

    def image(self) -> np.ndarray:
        """Paint the portrait: float32 RGB `[3, size, size]`, display values from 0 to 1."""
        canvas = self._background()
        self._body(canvas)
        self._head(canvas)
        self._hair(canvas)
        return np.sqrt(np.clip(canvas, 0, 1))

    def _background(self):
        rng, size = self.rng, self.size
        mid = rng.uniform(0.08, 0.85) * np.ones(3) + rng.uniform(-0.08, 0.08, 3)
        canvas = np.empty((3, size, size), np.float32)
        light = noise(rng, 3, size) * 0.1
        blobs = noise(rng, int(rng.integers(9, 20)), size, smooth=1.1)
        tint, amount = rng.normal(0, 1, 3), rng.uniform(0.02, 0.09)
        for channel in range(3):
            canvas[channel] = mid[channel] + light + blobs * (amount * (1 + 0.4 * tint[channel]))
        if rng.random() < 0.4:  # the edge of a wall, door or window
            edge = rng.uniform(-1.6, 1.6)
            canvas *= 1 - rng.uniform(-0.3, 0.5) * self._soft(
                self.body_x - edge, rng.uniform(2, 14)
            )
        return np.clip(canvas, 0.02, 1) ** 2

    def _body(self, canvas):
        p, rng, x, y = self.person, self.rng, self.body_x, self.body_y
        if p.hair_length > 0.6 and p.baldness < 0.94:  # long hair behind the neck
            bottom = 0.3 + 2.4 * (p.hair_length - 0.6)
            half = p.face_width + p.hair_volume * 0.7 + 0.05 * noise(rng, 6, self.size, smooth=0.7)
            ends = bottom + 0.08 * noise(rng, 24, self.size) - 0.5 * x**4
            half = half * np.sqrt(np.clip(1 - (np.minimum(y - 0.2, 0) / 1.1) ** 2, 0, 1))
            turned = np.where(y > 0, x, self.x)  # hangs down, but from a tilted head
            alpha = self._soft(np.minimum(np.minimum(half - np.abs(turned), ends - y), y + 0.8), 6)
            paint(canvas, self.hair * (0.4 + 0.25 * self._strands(turned * 30)), alpha)
        low = slice(int(np.searchsorted(y[:, 0], 0.25)), None)  # the rest of the body is below
        canvas, x, y = canvas[:, low], x[low], y[low]
        skin = tone(SKIN_TONES, p.skin) * np.float32(0.95)
        neck = p.face_width * rng.uniform(0.6, 0.72)
        curve = np.sqrt(np.maximum(1 - (x / (neck * 1.15)) ** 2, 0))
        flare = np.maximum(y - 1.05, 0) ** 2 * 1.5
        shadow = 0.45 + 0.55 * np.clip((y - 0.95 - 0.25 * curve) / 0.45, 0, 1)
        shaded = skin * self._lit(0.5 * curve) * shadow
        paint(canvas, shaded, self._soft(np.minimum(neck + flare - np.abs(x), y - 0.3)))
        cloth = linear(rng.uniform(15, 235) * np.ones(3) + rng.uniform(-45, 45, 3))
        top = 1.12 + 0.3 * np.maximum(np.abs(x) - neck, 0) ** 1.5
        collar = rng.uniform(0.15, 0.5) * np.maximum(1 - (x / (neck * 1.2)) ** 2, 0)
        folds = 0.1 * np.sin(6 * x + 2 * noise(rng, 5, self.size)[low])
        folds += 0.04 * noise(rng, 60, self.size)[low]
        cloth = np.maximum(cloth, 0.003) * self._lit(0.3 * folds - 0.3 * x**2) * (1 + folds)
        paint(canvas, cloth, self._soft(y - top - collar))

    def _head(self, canvas):
        p, s = self.person, self.scene
        x, y = self.face_x, self.face_y
        skin = tone(SKIN_TONES, p.skin) * linear([255 * (1 + p.ruddy), 255, 255 * (1 - p.ruddy)])
        for side in (-1, 1):  # ears, partly behind the head
            at = side * (float(self._head_width(0.1)) - 0.01) - 0.25 * sin(s.yaw)
            away = np.sqrt(((self.x - at) / p.ear) ** 2 + ((self.y - 0.12) / 0.19) ** 2)
            box = outer(away < 1.5)
            if min(away[box].shape) > 1:
                shaded = skin * self._lit(0.12 * np.cos(away[box] * 4.5)) * 0.85
                paint(canvas[:, *box], shaded, self._soft((1 - away[box]) * p.ear))
        height = self.depth + self._relief(x, y)
        albedo = self._skin(skin, x, y)
        self._features(albedo, x, y)
        lit = self._lit(height)
        gloss = (0.02 + 0.06 * (1 - p.age)) * self._shine() * s.light
        paint(canvas, albedo * lit + gloss, self._soft((1 - self.radius) * p.face_width))

    def _strands(self, along):
        """Fine random streaks, constant along a strand: values of about 0 to 1."""
        table = self.rng.random(1024).astype(np.float32)
        table = 0.6 * table + 0.4 * np.roll(table, 1)
        wobble = noise(self.rng, 6, self.size) * 1.5
        return table[((along + wobble) * 2).astype(np.int32) & 1023]

    def _hair(self, canvas):
        p, x, y = self.person, self.x, self.y
        if p.baldness > 0.94:
            return
        thick = p.hair_volume
        outline = 1 + 0.03 * noise(self.rng, 9, self.size) + 0.012 * noise(self.rng, 60, self.size)
        away = np.sqrt(
            (x / (self.width + thick * 0.7)) ** 2 + ((y + 0.3 * thick) / (1 + 0.8 * thick)) ** 2
        )
        jag = 0.03 * noise(self.rng, 40, self.size) + 0.04 * noise(self.rng, 10, self.size)
        side = np.abs(self.face_x) / p.face_width
        line = p.hairline + p.hair_slant * self.face_x + jag
        drop = 1.0 if p.hair_length < 0.6 else 1.3 + p.hair_length
        line = line + drop * np.clip((side - 0.62) / 0.38, 0, 1) ** 1.5
        bottom = 0.12 if p.hair_length < 0.6 else 0.3 + 2.4 * (p.hair_length - 0.6)
        inside = np.minimum(line - self.face_y, bottom - y + 2 * jag)
        alpha = self._soft((outline - away) * 0.8, 3) * self._soft(inside, 5)
        angle = np.arctan2(x - 0.4 * p.hair_slant, -(y + 0.55))
        streaks = 0.5 * (self._strands(angle * 20) + self._strands(angle * 45))
        dome = np.sqrt(np.maximum(1.02 - np.minimum(away, 1) ** 2, 0.001))
        lit = self._lit(dome * 0.9) * (0.5 + 0.7 * streaks)
        gloss = self._shine() * streaks * 0.12
        paint(canvas, self.hair * lit + gloss, alpha)


def photograph(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Photograph a portrait, float32 from 0 to 1, with a random camera: uint8 `[3, 256, 256]`.

    Focus blur, exposure, white balance and sensor noise come from `rng`.
    """
    sigma = rng.uniform(*FOCUS_BLUR)
    gain = np.exp(rng.normal(0, EXPOSURE) + rng.normal(0, WHITE_BALANCE, 3)).astype(np.float32)
    grain = rng.uniform(*SENSOR_NOISE) * rng.standard_normal(image.shape, dtype=np.float32)
    image = gaussian_filter(image, (0, sigma, sigma), truncate=3) * gain[:, None, None] + grain
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
