"""Procedural portraits: a height field of a head, lit, painted and set before a background.

Lengths are in units of half a head (crown to chin is 2); x points right and y down. Arrays are
float32 of shape `[size, size]`, colours `[3, size, size]`, linear light from 0 to 1 while painting.
"""

from math import cos, pi, sin, sqrt
from types import SimpleNamespace

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

SIZE = 256  # pixels a side of the finished portrait

# What a face is: each value is drawn evenly from its range.
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
# How a face is held and lit.
SCENE = {
    "roll": (-0.16, 0.16),  # radians
    "yaw": (-0.38, 0.38),
    "pitch": (-0.1, 0.12),
    "scale": (92, 110),  # pixels a unit
    "centre_x": (118, 138),  # pixels
    "centre_y": (124, 140),
    "smile": (-0.03, 0.09),
    "mouth_open": (-0.05, 0.035),  # shut below 0
    "gaze": (-0.25, 0.25),
    "light_x": (-1.1, 1.1),  # radians from the front
    "light_y": (0.05, 0.8),  # radians above
    "light": (0.7, 1.0),
    "ambient": (0.3, 0.5),
    "warmth": (-0.06, 0.1),
}
SKIN_TONES = np.array(
    [[246, 213, 192], [232, 190, 160], [208, 158, 122], [164, 112, 80], [108, 70, 50]]
)
HAIR_TONES = np.array([[22, 18, 18], [48, 32, 24], [92, 58, 36], [150, 96, 52], [206, 168, 110]])
IRIS_TONES = np.array([[60, 36, 20], [84, 56, 30], [92, 100, 62], [82, 118, 150], [110, 120, 128]])


def draw(ranges: dict[str, tuple], rng: np.random.Generator) -> SimpleNamespace:
    """Draw one value evenly from each range of `PERSON` or `SCENE`."""
    return SimpleNamespace(**{name: rng.uniform(*ends) for name, ends in ranges.items()})


def noise(
    rng: np.random.Generator, cells: int, size: int = SIZE, smooth: float = 0
) -> np.ndarray:
    """Random field of unit variance, from `cells` points a side: float32 `[size, size]`.

    `smooth` is the sigma, in cells, of a blur that hides the grid of points.
    """
    points = rng.standard_normal((cells, cells), dtype=np.float32)
    if smooth:
        points = gaussian_filter(points, smooth, mode="wrap") * (2 * smooth * sqrt(pi))
    if cells == size:
        return points
    points = Image.fromarray(points)
    return np.asarray(points.resize((size, size), Image.Resampling.BICUBIC))


def _linear(colour) -> np.ndarray:
    return (np.asarray(colour, np.float32) / 255).reshape(3, 1, 1) ** 2


def _tone(tones: np.ndarray, position: float) -> np.ndarray:
    steps = np.linspace(0, 1, len(tones))
    return _linear([np.interp(position, steps, tones[:, channel]) for channel in range(3)])


def _bump(x, y, x0, y0, sx, sy):
    return np.exp(-0.5 * (((x - x0) / sx) ** 2 + ((y - y0) / sy) ** 2))


def _paint(canvas: np.ndarray, colour, alpha: np.ndarray) -> None:
    canvas += alpha * (colour - canvas)


def _outer(alpha: np.ndarray) -> tuple[slice, slice]:
    """The box that holds all of `alpha` above zero."""
    rows, columns = np.flatnonzero(alpha.any(1)), np.flatnonzero(alpha.any(0))
    if not len(rows):
        return slice(0, 1), slice(0, 1)
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


class Portrait:
    """One portrait; `image()` paints it, `face_x` and `face_y` are its face coordinates."""

    def __init__(self, person, scene, rng: np.random.Generator, size: int = SIZE):
        self.person, self.scene, self.rng, self.size = person, scene, rng, size
        self.pixel = SIZE / size / scene.scale
        y, x = np.mgrid[0:size, 0:size].astype(np.float32) * np.float32(SIZE / size)
        x = (x - np.float32(scene.centre_x)) / np.float32(scene.scale)
        y = (y - np.float32(scene.centre_y)) / np.float32(scene.scale)
        self.x = x * cos(scene.roll) + y * sin(scene.roll)
        self.y = y * cos(scene.roll) - x * sin(scene.roll)
        self.body_x, self.body_y = x + 0.9 * sin(scene.roll), y
        self.width = self._head_width(self.y)
        self.radius = np.sqrt((self.x / self.width) ** 2 + self.y**2)
        self.depth = 0.8 * np.sqrt(np.maximum(1 - self.radius**2.4, 0))
        # A pixel seen on the turned head lies here on the face seen from the front.
        self.face_x = self.x * cos(scene.yaw) - self.depth * sin(scene.yaw)
        self.face_y = self.y - self.depth * sin(scene.pitch)

    def _head_width(self, y):
        low = np.clip(y + 0.1, 0, 1.1)
        return self.person.face_width * (1 - self.person.jaw * low * np.sqrt(low))

    def _soft(self, inside, pixels: float = 1.5):
        """Coverage 0 to 1 from a distance to the edge, in units, positive inside."""
        return np.clip(inside * (1 / (pixels * self.pixel)) + 0.5, 0, 1)

    def _lit(self, height, wrap=0.15):
        """Lambert shading of a height field: colour `[3, size, size]` to multiply albedo by."""
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
        """Highlight of the surface that was lit last."""
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
            canvas *= 1 - rng.uniform(-0.3, 0.5) * self._soft(self.body_x - edge, rng.uniform(2, 14))
        return np.clip(canvas, 0.02, 1) ** 2

    def _body(self, canvas):
        p, rng, x, y = self.person, self.rng, self.body_x, self.body_y
        hair = _tone(HAIR_TONES, p.hair_shade)
        if p.hair_length > 0.6 and p.baldness < 0.94:  # long hair falls behind the neck
            bottom = 0.3 + 2.4 * (p.hair_length - 0.6)
            half = p.face_width + p.hair_volume * 0.9 + 0.04 * noise(rng, 5, self.size)
            half = half * (1 - 0.12 * np.clip(y, -1, 2) ** 2)
            inside = np.minimum(half - np.abs(x), bottom + 0.05 * noise(rng, 24, self.size) - y)
            alpha = self._soft(np.minimum(inside, y + 0.5 - 0.6 * x**2), 6)
            _paint(canvas, hair * (0.4 + 0.2 * self._strands(x * 25)), alpha)
        low = slice(int(np.searchsorted(y[:, 0], 0.25)), None)  # the rest of the body is below
        canvas, x, y = canvas[:, low], x[low], y[low]
        skin = _tone(SKIN_TONES, p.skin) * np.float32(0.95)
        neck = p.face_width * rng.uniform(0.6, 0.72)
        curve = np.sqrt(np.maximum(1 - (x / (neck * 1.15)) ** 2, 0))
        flare = np.maximum(y - 1.05, 0) ** 2 * 1.5
        shadow = 0.45 + 0.55 * np.clip((y - 0.95 - 0.25 * curve) / 0.45, 0, 1)
        shaded = skin * self._lit(0.5 * curve) * shadow
        _paint(canvas, shaded, self._soft(np.minimum(neck + flare - np.abs(x), y - 0.3)))
        cloth = _linear(rng.uniform(15, 235) * np.ones(3) + rng.uniform(-45, 45, 3))
        top = 1.12 + 0.3 * np.maximum(np.abs(x) - neck, 0) ** 1.5
        collar = rng.uniform(0.15, 0.5) * np.maximum(1 - (x / (neck * 1.2)) ** 2, 0)
        folds = 0.1 * np.sin(6 * x + 2 * noise(rng, 5, self.size)[low])
        folds += 0.04 * noise(rng, 60, self.size)[low]
        cloth = np.maximum(cloth, 0.003) * self._lit(0.3 * folds - 0.3 * x**2) * (1 + folds)
        _paint(canvas, cloth, self._soft(y - top - collar))

    def _head(self, canvas):
        p, s = self.person, self.scene
        x, y = self.face_x, self.face_y
        skin = _tone(SKIN_TONES, p.skin) * _linear([255 * (1 + p.ruddy), 255, 255 * (1 - p.ruddy)])
        for side in (-1, 1):  # ears, partly behind the head
            at = side * (float(self._head_width(0.1)) - 0.01) - 0.25 * sin(s.yaw)
            away = np.sqrt(((self.x - at) / p.ear) ** 2 + ((self.y - 0.12) / 0.19) ** 2)
            box = _outer(away < 1.5)
            if min(away[box].shape) > 1:
                shaded = skin * self._lit(0.12 * np.cos(away[box] * 4.5)) * 0.85
                _paint(canvas[:, *box], shaded, self._soft((1 - away[box]) * p.ear))
        height = self.depth + self._relief(x, y)
        albedo = self._skin(skin, x, y)
        self._features(albedo, x, y)
        lit = self._lit(height)
        gloss = (0.02 + 0.06 * (1 - p.age)) * self._shine() * s.light
        _paint(canvas, albedo * lit + gloss, self._soft((1 - self.radius) * p.face_width))

    def _relief(self, x, y):
        p = self.person
        side = np.abs(x)
        along = np.clip((y - p.eye_y) / (p.nose_y - p.eye_y), 0, 1)
        base = 1 / (1 + np.exp(np.clip((y - p.nose_y - 0.02) / 0.022, -30, 30)))
        ridge = np.exp(-0.5 * (x / (0.045 + (p.nose_width - 0.045) * along * 0.75)) ** 2)
        nose = p.nose_height * (0.15 + 0.85 * along**1.4) * base * ridge
        nose *= np.clip((y - p.eye_y + 0.25) / 0.2, 0, 1)
        wings = 0.07 * _bump(side, y, p.nose_width * 1.15, p.nose_y - 0.02, 0.04, 0.045)
        sockets = -0.055 * _bump(side, y, p.eye_gap - 0.02, p.eye_y - 0.04, 0.15, 0.09)
        balls = 0.035 * _bump(side, y, p.eye_gap, p.eye_y, p.eye_width * 0.75, 0.06)
        cheeks = p.cheek * _bump(side, y, 0.37, 0.3, 0.15, 0.14)
        chin = p.chin * _bump(x, y, 0, 0.87, 0.16, 0.1) - 0.025 * _bump(x, y, 0, 0.79, 0.14, 0.04)
        lips = 0.045 * _bump(x, y, 0, p.mouth_y - 0.03, 0.8 * p.mouth_width, 0.03)
        lips += 0.055 * _bump(x, y, 0, p.mouth_y + 0.045, 0.7 * p.mouth_width, 0.032)
        return nose + wings + sockets + balls + cheeks + chin + lips

    def _skin(self, skin, x, y):
        p, rng, size = self.person, self.rng, self.size
        side = np.abs(x)
        pores = 0.025 * noise(rng, size, size) + 0.03 * noise(rng, size // 2, size)
        blotches = 0.035 * noise(rng, 14, size) + 0.03 * noise(rng, 40, size)
        dark = 1 + pores + blotches
        smile = p.mouth_y - p.nose_y
        fold = side - p.nose_width * 1.5 - 0.55 * (y - p.nose_y)
        fold = np.exp(-0.5 * (fold / 0.018) ** 2) * _bump(y, 0, p.nose_y + smile / 2, 0, 0.09, 1)
        lines = np.maximum(np.sin((y + 0.04 * np.cos(5 * x)) * 62), 0) ** 6 * _bump(x, y, 0, -0.36, 0.3, 0.09)
        bags = _bump(side, y, p.eye_gap, p.eye_y + 0.1, 0.1, 0.03)
        dark *= 1 - p.age * (0.35 * fold + 0.22 * lines + 0.2 * bags)
        if p.freckles > 0:
            spots = np.maximum(noise(rng, 90, size) - 1.1, 0) * _bump(side, y, 0.2, 0.25, 0.25, 0.2)
            dark *= 1 - np.minimum(0.5 * p.freckles * spots, 0.6)
        blush = 0.16 * _bump(side, y, 0.38, 0.34, 0.14, 0.12) + 0.1 * _bump(x, y, 0, p.nose_y, 0.1, 0.09)
        albedo = skin * dark
        albedo[1:] *= 1 - blush
        return albedo

    def _features(self, albedo, x, y):
        p, s, rng = self.person, self.scene, self.rng
        hair = _tone(HAIR_TONES, p.hair_shade) * np.float32(0.7)
        mouth = self._mouth(albedo, x, y)
        if p.beard > 0 and p.hair_length < 0.6:
            stubble = 0.5 + 0.3 * noise(rng, self.size // 2, self.size) + 0.25 * noise(rng, 20, self.size)
            edge = y - 0.42 - 0.25 * np.exp(-((np.abs(x) - 0.3) / 0.17) ** 2) + 0.1 * np.abs(x)
            full = self._soft(edge, 14) * (1 - mouth) * np.clip(0.3 + p.beard * stubble * 1.6, 0, 0.9)
            _paint(albedo, hair, full * (y > p.nose_y))
        for side in (-1, 1):
            self._eye(albedo, x, y, side, hair)
        nostril = _bump(np.abs(x), y, p.nose_width * 0.62, p.nose_y + 0.025, 0.024, 0.013)
        albedo *= 1 - 0.75 * nostril
        albedo *= 1 - 0.25 * _bump(x, y, 0, p.nose_y + 0.06, p.nose_width, 0.025)
        if p.glasses > 0:
            away = np.sqrt(((np.abs(x) - p.eye_gap - 0.01) / 0.2) ** 2 + ((y - p.eye_y - 0.03) / 0.15) ** 2)
            rim = self._soft(0.012 + 0.05 * p.glasses - np.abs(away - 1) * 0.17)
            bridge = self._soft(0.014 - np.abs(y - p.eye_y + 0.02)) * (np.abs(x) < p.eye_gap - 0.18)
            arms = self._soft(0.014 - np.abs(y - p.eye_y)) * (np.abs(x) > p.eye_gap + 0.2)
            frame = _linear(np.where(p.glasses > 0.1, [20, 18, 18], [120, 90, 60]))
            _paint(albedo, frame, np.maximum(np.maximum(rim, bridge), arms))

    def _mouth(self, albedo, x, y):
        p, s = self.person, self.scene
        t = np.clip(np.abs(x) / p.mouth_width, 0, 1)
        line = p.mouth_y - s.smile * t**2 + 0.012 * (1 - t) * np.cos(np.minimum(t * 9, np.pi))
        gap = max(s.mouth_open, 0) * (1 - t**2)  # half of the opening's height
        shape = np.sqrt(np.maximum(1 - t**2, 0))
        bow = 1 - 0.25 * np.exp(-((x / 0.03) ** 2))
        upper = np.minimum(y - line + gap + p.lip_upper * shape * bow, line + gap - y + p.lip_lower * shape) - 0.004
        lips = self._soft(upper, 2.5) * (t < 1)
        red = _tone(SKIN_TONES, min(1, p.skin + 0.12)) * _linear([245, 255 - 95 * p.lip_red, 255 - 80 * p.lip_red])
        _paint(albedo, red * (1 + 0.1 * np.sin(x * 90)), lips * 0.9)
        inner = self._soft(gap + 0.004 - np.abs(y - line), 2) * (t < 0.97)
        teeth = self._soft(gap - 0.006 - np.abs(y - line + 0.006), 2) * np.clip(gap * 60 - 0.4, 0, 0.8)
        _paint(albedo, _linear([60, 25, 22]), inner * 0.85)
        _paint(albedo, _linear([225, 215, 205]), teeth * (1 - t**4))
        return lips

    def _eye(self, albedo, x, y, side, hair):
        p, s = self.person, self.scene
        dx = (x * side - p.eye_gap) / p.eye_width
        dy = (y - p.eye_y + p.eye_tilt * dx * p.eye_width) / p.eye_width
        box = _outer((np.abs(dx) < 2) & (np.abs(dy) < 2.6))
        albedo, dx, dy = albedo[:, *box], dx[box], dy[box]
        lid = np.maximum(1 - dx**2, 0)
        top, bottom = -p.eye_open * lid**0.8, 0.7 * p.eye_open * lid
        crease = np.exp(-(((dy - top + 0.2) / 0.06) ** 2)) * (np.abs(dx) < 1.15)
        albedo *= 1 - 0.35 * crease - 0.15 * np.exp(-(((dy - bottom - 0.12) / 0.08) ** 2)) * lid
        opening = self._soft((np.minimum(dy - top, bottom - dy) - 0.06) * p.eye_width)
        _paint(albedo, _linear([226, 218, 212]), opening)
        away = np.sqrt((dx - s.gaze * side) ** 2 + (dy + 0.08) ** 2) * p.eye_width
        iris = 0.46 * p.eye_width
        tone = _tone(IRIS_TONES, max(0, 1 - p.skin * 1.6) * p.hair_shade ** 0.5)
        ring = 0.6 + 0.6 * np.clip(away / iris, 0, 1) * (away < 0.85 * iris)
        _paint(albedo, tone * ring, opening * self._soft(iris - away))
        _paint(albedo, _linear([8, 6, 6]), opening * self._soft(0.45 * iris - away))
        albedo *= 1 - 0.45 * opening * np.exp(-((dy - top) / 0.16) ** 2)  # the lid's shadow
        lash = np.exp(-(((dy - top) / 0.085) ** 2)) * (np.abs(dx) < 1.05)
        _paint(albedo, hair * 0.3, 0.85 * lash)
        spark = _bump(dx * p.eye_width, dy * p.eye_width, 0.03 * (1 if s.light_x > 0 else -1), -0.035, 0.012, 0.012)
        _paint(albedo, np.float32(1.1), 0.9 * spark * opening)
        across = dx * 0.78 - 0.05
        arch = -(p.brow_gap / p.eye_width) - 0.3 * p.brow_arch * (0.35 - (across - 0.25) ** 2)
        thick = p.brow_width / p.eye_width * np.clip(1.15 - 0.55 * (across + 1) / 2, 0, 2)
        brow = np.exp(-(((dy - arch) / thick) ** 2)) * np.clip((1.05 - np.abs(across)) * 6, 0, 1)
        hairs = 0.75 + 0.25 * np.sin(dx * 38 + dy * 26)
        _paint(albedo, hair, p.brow_dark * brow * hairs)

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
        away = np.sqrt((x / (self.width + thick * 0.7)) ** 2 + ((y + 0.3 * thick) / (1 + 0.8 * thick)) ** 2)
        jag = 0.03 * noise(self.rng, 40, self.size) + 0.04 * noise(self.rng, 10, self.size)
        side = np.abs(self.face_x) / p.face_width
        line = p.hairline + p.hair_slant * self.face_x + jag
        drop = 1.0 if p.hair_length < 0.6 else 1.3 + p.hair_length
        line = line + drop * np.clip((side - 0.62) / 0.38, 0, 1) ** 1.5
        bottom = 0.12 if p.hair_length < 0.6 else 0.3 + 2.4 * (p.hair_length - 0.6)
        inside = np.minimum(line - self.face_y, bottom - y + 2 * jag)
        alpha = self._soft((outline - away) * 0.8, 3) * self._soft(inside, 5)
        angle = np.arctan2(x - 0.4 * p.hair_slant, -(y + 0.55))
        streaks = self._strands(angle * 20)
        dome = np.sqrt(np.maximum(1.02 - np.minimum(away, 1) ** 2, 0.001))
        tone = _tone(HAIR_TONES, p.hair_shade)
        if p.age > 0.8:
            tone = tone + (p.age - 0.8) * 4 * (_linear([170, 168, 165]) - tone)
        lit = self._lit(dome * 0.9) * (0.5 + 0.7 * streaks)
        gloss = self._shine() * streaks * 0.12
        _paint(canvas, tone * lit + gloss, alpha)
