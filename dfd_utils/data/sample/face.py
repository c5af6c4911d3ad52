"""A face: the coordinates of each pixel on it, its relief, its painted skin and features."""

from math import cos, pi, sin, sqrt

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

SIZE = 256  # pixels per side of the finished portrait
SKIN_TONES = np.array(
    [[246, 213, 192], [232, 190, 160], [208, 158, 122], [164, 112, 80], [108, 70, 50]]
)
HAIR_TONES = np.array([[22, 18, 18], [48, 32, 24], [92, 58, 36], [150, 96, 52], [206, 168, 110]])
IRIS_TONES = np.array([[60, 36, 20], [84, 56, 30], [92, 100, 62], [82, 118, 150], [110, 120, 128]])


def noise(rng: np.random.Generator, cells: int, size: int = SIZE, smooth: float = 0) -> np.ndarray:
    """Random field of unit variance, from `cells` points per side: float32 `[size, size]`.

    `smooth` is the sigma, in cells, of a blur that hides the grid of points.
    """
    points = rng.standard_normal((cells, cells), dtype=np.float32)
    if smooth:
        points = gaussian_filter(points, smooth, mode="wrap") * (2 * smooth * sqrt(pi))
    if cells == size:
        return points
    points = Image.fromarray(points)
    return np.asarray(points.resize((size, size), Image.Resampling.BICUBIC))


def linear(colour) -> np.ndarray:
    """Linear light `[3, 1, 1]` of an RGB colour, 0 to 255."""
    return (np.asarray(colour, np.float32) / 255).reshape(3, 1, 1) ** 2


def tone(tones: np.ndarray, position: float) -> np.ndarray:
    """The colour at `position`, 0 to 1, along a scale of colours."""
    steps = np.linspace(0, 1, len(tones))
    return linear([np.interp(position, steps, tones[:, channel]) for channel in range(3)])


def bump(x, y, x0, y0, sx, sy):
    """A Gaussian hill of height 1 around (x0, y0)."""
    return np.exp(-0.5 * (((x - x0) / sx) ** 2 + ((y - y0) / sy) ** 2))


def paint(canvas: np.ndarray, colour, alpha: np.ndarray) -> None:
    """Blend `colour` into `canvas` with the opacity `alpha`, in place."""
    canvas += alpha * (colour - canvas)


def outer(alpha: np.ndarray) -> tuple[slice, slice]:
    """The bounding box of `alpha` above zero."""
    rows, columns = np.flatnonzero(alpha.any(1)), np.flatnonzero(alpha.any(0))
    if not len(rows):
        return slice(0, 1), slice(0, 1)
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


class Face:
    """The face of one `person` in one `scene`: the part of a portrait that a swap replaces."""

    def __init__(self, person, scene, rng: np.random.Generator, size: int = SIZE):
        self.person, self.scene, self.rng, self.size = person, scene, rng, size
        self.pixel = SIZE / size / scene.scale
        self.hair = tone(HAIR_TONES, person.hair_shade)
        paint(self.hair, linear([170, 168, 165]), max(person.age - 0.8, 0) * 4)  # greying
        y, x = np.mgrid[0:size, 0:size].astype(np.float32) * np.float32(SIZE / size)
        x = (x - np.float32(scene.centre_x)) / np.float32(scene.scale)
        y = (y - np.float32(scene.centre_y)) / np.float32(scene.scale)
        self.x = x * cos(scene.roll) + y * sin(scene.roll)
        self.y = y * cos(scene.roll) - x * sin(scene.roll)
        self.body_x, self.body_y = x + 0.9 * sin(scene.roll), y
        self.width = self._head_width(self.y)
        self.radius = np.sqrt((self.x / self.width) ** 2 + self.y**2)
        self.depth = 0.8 * np.sqrt(np.maximum(1 - self.radius**2 * np.sqrt(self.radius), 0))
        # Coordinates of each pixel of the turned head on the face seen from the front.
        self.face_x = self.x * cos(scene.yaw) - self.depth * sin(scene.yaw)
        self.face_y = self.y - self.depth * sin(scene.pitch)

    def _head_width(self, y):
        low = np.clip(y + 0.1, 0, 1.1)
        return self.person.face_width * (1 - self.person.jaw * low * np.sqrt(low))

    def _soft(self, inside, pixels: float = 1.5):
        """Opacity 0 to 1 from a distance to the edge, in units, positive inside."""
        return np.clip(inside * (1 / (pixels * self.pixel)) + 0.5, 0, 1)

    def _relief(self, x, y):
        p = self.person
        side = np.abs(x)
        along = np.clip((y - p.eye_y) / (p.nose_y - p.eye_y), 0, 1)
        base = 1 / (1 + np.exp(np.clip((y - p.nose_y - 0.02) / 0.022, -30, 30)))
        ridge = np.exp(-0.5 * (x / (0.045 + (p.nose_width - 0.045) * along * 0.75)) ** 2)
        nose = p.nose_height * (0.15 + 0.85 * along**1.4) * base * ridge
        nose *= np.clip((y - p.eye_y + 0.25) / 0.2, 0, 1)
        wings = 0.07 * bump(side, y, p.nose_width * 1.15, p.nose_y - 0.02, 0.04, 0.045)
        sockets = -0.055 * bump(side, y, p.eye_gap - 0.02, p.eye_y - 0.04, 0.15, 0.09)
        balls = 0.035 * bump(side, y, p.eye_gap, p.eye_y, p.eye_width * 0.75, 0.06)
        cheeks = p.cheek * bump(side, y, 0.37, 0.3, 0.15, 0.14)
        chin = p.chin * bump(x, y, 0, 0.87, 0.16, 0.1) - 0.025 * bump(x, y, 0, 0.79, 0.14, 0.04)
        lips = 0.045 * bump(x, y, 0, p.mouth_y - 0.03, 0.8 * p.mouth_width, 0.03)
        lips += 0.055 * bump(x, y, 0, p.mouth_y + 0.045, 0.7 * p.mouth_width, 0.032)
        return nose + wings + sockets + balls + cheeks + chin + lips

    def _skin(self, skin, x, y):
        p, rng, size = self.person, self.rng, self.size
        side = np.abs(x)
        pores = 0.025 * noise(rng, size, size) + 0.03 * noise(rng, size // 2, size)
        blotches = 0.035 * noise(rng, 14, size) + 0.03 * noise(rng, 40, size)
        dark = 1 + pores + blotches
        smile = p.mouth_y - p.nose_y
        fold = side - p.nose_width * 1.5 - 0.55 * (y - p.nose_y)
        fold = np.exp(-0.5 * (fold / 0.018) ** 2) * bump(y, 0, p.nose_y + smile / 2, 0, 0.09, 1)
        lines = np.maximum(np.sin((y + 0.04 * np.cos(5 * x)) * 62), 0) ** 6
        lines *= bump(x, y, 0, -0.36, 0.3, 0.09)
        bags = bump(side, y, p.eye_gap, p.eye_y + 0.1, 0.1, 0.03)
        dark *= 1 - p.age * (0.35 * fold + 0.22 * lines + 0.2 * bags)
        if p.freckles > 0:
            spots = np.maximum(noise(rng, 90, size) - 1.1, 0) * bump(side, y, 0.2, 0.25, 0.25, 0.2)
            dark *= 1 - np.minimum(0.5 * p.freckles * spots, 0.6)
        blush = 0.16 * bump(side, y, 0.38, 0.34, 0.14, 0.12)
        blush += 0.1 * bump(x, y, 0, p.nose_y, 0.1, 0.09)
        albedo = skin * dark
        albedo[1:] *= 1 - blush
        return albedo

    def _features(self, albedo, x, y):
        p, rng = self.person, self.rng
        hair = self.hair * np.float32(0.7)
        mouth = self._mouth(albedo, x, y)
        if p.beard > 0 and p.hair_length < 0.6:
            stubble = 0.5 + 0.25 * noise(rng, 20, self.size)
            stubble += 0.3 * noise(rng, self.size // 2, self.size)
            edge = y - 0.42 - 0.25 * np.exp(-(((np.abs(x) - 0.3) / 0.17) ** 2)) + 0.1 * np.abs(x)
            full = self._soft(edge, 14) * (1 - mouth) * (y > p.nose_y)
            paint(albedo, hair, full * np.clip(0.3 + p.beard * stubble * 1.6, 0, 0.9))
        for side in (-1, 1):
            self._eye(albedo, x, y, side, hair)
        nostril = bump(np.abs(x), y, p.nose_width * 0.62, p.nose_y + 0.025, 0.024, 0.013)
        albedo *= 1 - 0.75 * nostril
        albedo *= 1 - 0.25 * bump(x, y, 0, p.nose_y + 0.06, p.nose_width, 0.025)
        if p.glasses > 0:
            across, down = (np.abs(x) - p.eye_gap - 0.01) / 0.2, (y - p.eye_y - 0.03) / 0.15
            away = np.sqrt(across**2 + down**2)
            rim = self._soft(0.012 + 0.05 * p.glasses - np.abs(away - 1) * 0.17)
            bridge = self._soft(0.014 - np.abs(y - p.eye_y + 0.02)) * (np.abs(x) < p.eye_gap - 0.18)
            arms = self._soft(0.014 - np.abs(y - p.eye_y)) * (np.abs(x) > p.eye_gap + 0.2)
            frame = linear(np.where(p.glasses > 0.1, [20, 18, 18], [120, 90, 60]))
            paint(albedo, frame, np.maximum(np.maximum(rim, bridge), arms))

    def _mouth(self, albedo, x, y):
        p, s = self.person, self.scene
        t = np.clip(np.abs(x) / p.mouth_width, 0, 1)
        line = p.mouth_y - s.smile * t**2 + 0.012 * (1 - t) * np.cos(np.minimum(t * 9, np.pi))
        gap = max(s.mouth_open, 0) * (1 - t**2)  # half of the opening's height
        shape = np.sqrt(np.maximum(1 - t**2, 0))
        bow = 1 - 0.25 * np.exp(-((x / 0.03) ** 2))
        above, below = y - line + p.lip_upper * shape * bow, line - y + p.lip_lower * shape
        lips = self._soft(np.minimum(above, below) + gap - 0.004, 2.5) * (t < 1)
        red = tone(SKIN_TONES, min(1, p.skin + 0.12))
        red = red * linear([245, 255 - 95 * p.lip_red, 255 - 80 * p.lip_red])
        paint(albedo, red * (1 + 0.1 * np.sin(x * 90)), lips * 0.9)
        inner = self._soft(gap + 0.004 - np.abs(y - line), 2) * (t < 0.97)
        teeth = self._soft(gap - 0.006 - np.abs(y - line + 0.006), 2)
        teeth *= np.clip(gap * 60 - 0.4, 0, 0.8)
        paint(albedo, linear([60, 25, 22]), inner * 0.85)
        paint(albedo, linear([225, 215, 205]), teeth * (1 - t**4))
        return lips

    def _eye(self, albedo, x, y, side, hair):
        p, s = self.person, self.scene
        dx = (x * side - p.eye_gap) / p.eye_width
        dy = (y - p.eye_y + p.eye_tilt * dx * p.eye_width) / p.eye_width
        box = outer((np.abs(dx) < 2) & (np.abs(dy) < 2.6))
        albedo, dx, dy = albedo[:, *box], dx[box], dy[box]
        lid = np.maximum(1 - dx**2, 0)
        top, bottom = -p.eye_open * lid**0.8, 0.7 * p.eye_open * lid
        crease = np.exp(-(((dy - top + 0.2) / 0.06) ** 2)) * (np.abs(dx) < 1.15)
        albedo *= 1 - 0.35 * crease - 0.15 * np.exp(-(((dy - bottom - 0.12) / 0.08) ** 2)) * lid
        opening = self._soft(np.minimum(dy - top, bottom - dy) * p.eye_width)
        opening = opening * np.clip(5 - 5 * np.abs(dx), 0, 1)
        paint(albedo, linear([226, 218, 212]), opening)
        away = np.sqrt((dx - s.gaze * side) ** 2 + (dy + 0.08) ** 2) * p.eye_width
        iris = 0.46 * p.eye_width
        colour = tone(IRIS_TONES, max(0, 1 - p.skin * 1.6) * p.hair_shade**0.5)
        ring = 0.6 + 0.6 * np.clip(away / iris, 0, 1) * (away < 0.85 * iris)
        paint(albedo, colour * ring, opening * self._soft(iris - away))
        paint(albedo, linear([8, 6, 6]), opening * self._soft(0.45 * iris - away))
        albedo *= 1 - 0.45 * opening * np.exp(-(((dy - top) / 0.16) ** 2))  # the lid's shadow
        lash = np.exp(-(((dy - top) / 0.085) ** 2)) * (np.abs(dx) < 1.05)
        paint(albedo, hair * 0.3, 0.85 * lash)
        spark = bump(dx, dy, 0.2 * side * (1 if s.light_x > 0 else -1), -0.24, 0.08, 0.08)
        paint(albedo, np.float32(1.1), 0.9 * spark * opening)
        across = dx * 0.78 - 0.05
        arch = -(p.brow_gap / p.eye_width) - 0.3 * p.brow_arch * (0.35 - (across - 0.25) ** 2)
        thick = p.brow_width / p.eye_width * np.clip(1.15 - 0.55 * (across + 1) / 2, 0, 2)
        brow = np.exp(-(((dy - arch) / thick) ** 2)) * np.clip((1.05 - np.abs(across)) * 6, 0, 1)
        hairs = 0.75 + 0.25 * np.sin(dx * 38 + dy * 26)
        paint(albedo, hair, p.brow_dark * brow * hairs)
