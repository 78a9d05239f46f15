"""Procedural laparoscopy: what one frame of one synthetic video looks like, and which class each pixel is.

A frame is a function of (seed, video, clip, frame) alone. Randomness comes from Philox generators keyed by those
numbers, so frames may be drawn in any order, by any process, at any size, and are the same bit for bit on one machine.

Coordinates are those of a 16:9 picture, x in [-16/9, 16/9] and y in [-1, 1] downwards, whatever the pixel grid. Every
organ is a field that grows towards its inside; where its outline lies is decided once per clip, by the quantile of the
field that gives the organ its share of the picture. Layers are then painted from the back to the front, lit by a lamp
at the lens, and covered by tools, smoke and the round field of view.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from alges_fast.data.textures import TEXTURE_PERIOD, Plane, f32, num, philox, sample

ASPECT = 16 / 9
FRAMES_PER_CLIP = 80
FPS = 25.0
ANATOMY, SHOT = 1 << 32, 1 << 33
"""Purposes of random numbers beside a frame's own, whose purpose is its number in the clip."""

COARSE = (60, 106)
"""Grid on which outlines are decided."""

(BACKGROUND, WALL, LIVER, GUT, FAT, GRASPER, CONNECTIVE, BLOOD, DUCT, HOOK, GALLBLADDER, VEIN, LIGAMENT) = range(13)
BACK_TO_FRONT = (FAT, GUT, LIVER, VEIN, LIGAMENT, CONNECTIVE, GALLBLADDER, DUCT, BLOOD)
"""Tissue over the abdominal wall, in painting order."""


@dataclass(frozen=True)
class Tissue:
    """Look of one class: display colour (0..1), its spread between videos, relief (height, and width of the rounded
    rim), and how strongly mottling, grain, lobules, vessels and wetness show."""

    colour: tuple[float, float, float]
    spread: float
    height: float
    rim: float
    mottle: float
    grain: float
    lobules: float
    vessels: float
    wet: float


TISSUES = {
    WALL: Tissue((0.77, 0.46, 0.40), 0.05, 0.00, 1.0, 0.13, 0.04, 0.00, 0.55, 0.45),
    FAT: Tissue((0.93, 0.77, 0.45), 0.05, 0.14, 0.30, 0.10, 0.03, 0.24, 0.45, 1.00),
    GUT: Tissue((0.86, 0.57, 0.49), 0.05, 0.16, 0.16, 0.07, 0.03, 0.00, 0.60, 0.90),
    LIVER: Tissue((0.47, 0.19, 0.14), 0.04, 0.22, 0.40, 0.08, 0.07, 0.00, 0.00, 0.80),
    VEIN: Tissue((0.33, 0.20, 0.40), 0.04, 0.03, 0.04, 0.05, 0.03, 0.00, 0.00, 0.80),
    LIGAMENT: Tissue((0.86, 0.70, 0.60), 0.04, 0.05, 0.06, 0.10, 0.05, 0.00, 0.20, 0.60),
    CONNECTIVE: Tissue((0.82, 0.54, 0.44), 0.05, 0.07, 0.16, 0.22, 0.07, 0.10, 0.45, 0.90),
    GALLBLADDER: Tissue((0.62, 0.65, 0.47), 0.07, 0.24, 0.20, 0.06, 0.02, 0.00, 0.55, 1.20),
    DUCT: Tissue((0.84, 0.72, 0.48), 0.04, 0.06, 0.04, 0.06, 0.03, 0.00, 0.20, 0.80),
    BLOOD: Tissue((0.42, 0.04, 0.05), 0.02, 0.02, 0.08, 0.12, 0.02, 0.00, 0.00, 1.40),
}


@dataclass(frozen=True)
class Cast:
    """What a video shows: share of the picture (0..1) of each class, 0 where it is absent; and how many graspers and
    L-hooks a clip has on average. The wall fills what the others leave."""

    shares: tuple[float, ...]
    graspers: float
    hooks: float


def draw(
    seed: int, video: int, cast: Cast, clip: int, frame: int, size: tuple[int, int]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Frame 0..79 of a clip: RGB (3, H, W) and class ids (H, W), both uint8; size is (H, W)."""
    shot = _shot(seed, video, cast, clip)
    height, width = size
    x, y = _grid(height, width)
    time = frame / FPS
    pixel = 2 / height
    anatomy = shot.anatomy

    fields, texture = shot.fields(x, y, time, pixel)
    lobules, mottle, grain, vessels = texture[2:]
    mask = np.full(size, WALL, np.uint8)
    colour = anatomy.paint(WALL, mottle, grain, lobules, vessels)
    relief = 0.035 * texture[0]
    wet = np.full(size, TISSUES[WALL].wet, np.float32)
    for k, field in fields.items():
        tissue = TISSUES[k]
        depth = field - shot.outlines[k]
        alpha = np.clip(depth * (0.7 / pixel) + 0.5, 0, 1)
        if tissue.height > 0.1:  # what stands out shades what it rests on
            colour *= 1 - 0.45 * np.clip(1 + depth * 12, 0, 1) ** 2
        colour += alpha * (anatomy.paint(k, mottle, grain, lobules, vessels) - colour)
        dome = np.clip(depth * (1 / tissue.rim), 0, 1)
        dome = dome * (2 - dome)
        bumps = tissue.height + 0.020 * texture[1] + (0.06 * tissue.lobules) * lobules
        relief += dome * (bumps - relief if tissue.height > 0.1 else bumps)
        wet += alpha * (tissue.wet - wet)
        mask[depth > 0] = k

    for tool in shot.tools:
        shade = tool.shadow(x, y, time)
        colour *= shade
    light, glare = anatomy.light(x, y, relief, wet, pixel, time)
    colour *= light
    colour += glare
    for tool in shot.tools:
        tool.paint(x, y, time, pixel, colour, mask)
    shot.smoke(x, y, time, pixel, colour)

    rim = anatomy.view(x, y)
    colour *= np.clip(rim / (3 * pixel) + 0.5, 0, 1) * (1 - 0.65 * np.exp(rim * (-1 / 0.10)))
    mask[rim < 0] = BACKGROUND
    return shot.expose(colour, frame), mask


class Anatomy:
    """One video: where its organs lie, what colours they have, and its camera's light and round field of view."""

    def __init__(self, seed: int, video: int, cast: Cast) -> None:
        rng = philox(seed, video, 0, ANATOMY)
        self.cast = cast
        self.centre = rng.normal(0, 0.05, 2)
        self.turn = rng.normal(0, 0.16)
        self.mirror = -1.0 if rng.random() < 0.25 else 1.0
        self.offset = rng.uniform(0, TEXTURE_PERIOD, 2)

        self.fat_side = np.deg2rad(rng.uniform(35, 85))
        self.fat_lobe = np.array([rng.uniform(-1.1, -0.3), rng.uniform(0.55, 0.95)])
        self.liver = np.array([rng.uniform(-0.9, -0.55), rng.uniform(-0.45, -0.2)])
        self.liver_axes = (rng.uniform(0.95, 1.25), rng.uniform(0.60, 0.80), rng.uniform(-0.1, 0.4))
        self.right_lobe = np.array([rng.uniform(0.0, 0.45), rng.uniform(-1.05, -0.85)])
        self.neck = np.array([rng.uniform(0.15, 0.40), rng.uniform(0.12, 0.32)])
        self.fundus = self.neck + rng.uniform(0.55, 0.85) * _direction(np.deg2rad(rng.uniform(175, 250)))
        self.plump = rng.uniform(0.55, 0.95)
        self.gut = (
            rng.uniform(0.3, 1.0),
            rng.uniform(1.0, 1.25),
            rng.uniform(0.45, 0.65),
            rng.uniform(14, 20),
            rng.uniform(-2.4, -1.2),
        )
        self.ligament = (rng.uniform(-0.5, 0.1), rng.uniform(1.5, 2.0))
        self.vein = (rng.uniform(-0.9, -0.5), rng.uniform(-0.35, -0.05), rng.uniform(0, 0.6))

        warmth, inflamed, fatty = rng.normal(0, 0.03), rng.random(), rng.random()
        self.colours = {}
        for k, tissue in TISSUES.items():
            colour = np.array(tissue.colour) * np.exp(tissue.spread * rng.normal(0, 1))
            colour += np.array([1, 0.1, -1]) * warmth + 0.3 * tissue.spread * rng.normal(0, 1, 3)
            if k == GALLBLADDER:  # from pearly green to an inflamed red
                colour += inflamed * np.array([0.12, -0.14, -0.06])
            if k == LIVER:  # from healthy to fatty
                colour += fatty * np.array([0.17, 0.12, 0.05])
            self.colours[k] = np.clip(colour, 0.03, 0.95).astype(np.float32) ** 2  # linear light, with a gamma of 2
        self.white = np.clip(rng.normal([1.0, 0.97, 0.93], 0.04), 0.8, 1.1).astype(np.float32)
        self.exposure = rng.uniform(1.5, 2.3)
        self.lamp = (rng.normal(0, 0.22), rng.normal(-0.1, 0.18), rng.uniform(0.95, 1.35))
        self.falloff = rng.uniform(0.25, 0.55)
        self.gloss = rng.uniform(0.7, 1.6)
        self.haze = max(0.0, rng.normal(0.015, 0.02))

        x, y = _grid(*COARSE)
        self.radius = float(np.quantile(np.hypot(x - self.centre[0], y - self.centre[1]), 1 - cast.shares[BACKGROUND]))

    def view(self, x: Plane, y: Plane) -> Plane:
        """Distance to the rim of the field of view, positive inside."""
        return f32(self.radius - np.hypot(x - num(self.centre[0]), y - num(self.centre[1])))

    def paint(self, k: int, mottle: Plane, grain: Plane, lobules: Plane, vessels: Plane) -> Plane:
        """Linear RGB (3, H, W) of a tissue before light."""
        tissue = TISSUES[k]
        tone = 1 + tissue.mottle * mottle + tissue.grain * grain
        if tissue.lobules:
            tone *= 1 + tissue.lobules * (lobules - 0.5)
        colour = np.maximum(tone, 0.15) * self.colours[k][:, None, None]
        if tissue.vessels:
            colour *= 1 - (tissue.vessels * np.array([0.25, 0.85, 0.75], np.float32))[:, None, None] * vessels
        return f32(colour)

    def light(self, x: Plane, y: Plane, relief: Plane, wet: Plane, pixel: float, time: float) -> tuple[Plane, Plane]:
        """Diffuse light (factor) and glare (sum) from a lamp at the lens, over the relief of the tissue."""
        slope_x = np.empty_like(relief)
        slope_y = np.empty_like(relief)
        step_x = float(x[0, 1] - x[0, 0])
        np.subtract(relief[:, 2:], relief[:, :-2], out=slope_x[:, 1:-1])
        np.subtract(relief[2:], relief[:-2], out=slope_y[1:-1])
        slope_x[:, 0] = slope_x[:, -1] = 0
        slope_y[0] = slope_y[-1] = 0
        slope_x *= 0.5 / step_x
        slope_y *= 0.5 / pixel
        lamp_x, lamp_y, lamp_z = self.lamp
        to_x = num(lamp_x) - x
        to_y = num(lamp_y) - y
        square = to_x * to_x + to_y * to_y
        near = 1 / np.sqrt(square + num(lamp_z**2))
        facing = 1 / np.sqrt(1 + slope_x * slope_x + slope_y * slope_y)
        diffuse = (num(lamp_z) - slope_x * to_x - slope_y * to_y) * near * facing
        diffuse = np.maximum(diffuse, 0.06) * (num(self.exposure) / (1 + num(self.falloff) * square))
        # Half-way vector between the lamp and the eye, which looks along z from a little further back.
        half_x, half_y = to_x - 0.45 * x, to_y - 0.45 * y
        half_z = num(lamp_z + 1.6)
        shine = (half_z - slope_x * half_x - slope_y * half_y) * facing
        shine *= 1 / np.sqrt(half_x * half_x + half_y * half_y + half_z * half_z)
        shine = np.maximum(shine, 0)
        for _ in range(6):  # to the 64th power
            shine *= shine
        return f32(diffuse), f32(np.minimum(shine * shine * wet * num(1.2 * self.gloss), 1.5))


@dataclass(frozen=True)
class Tool:
    """An instrument: enters at the rim, its tip wanders about a target."""

    kind: int
    entry: tuple[float, float]
    tip: tuple[float, float]
    sway: tuple[float, float, float, float]
    width: float
    opening: float
    metal: tuple[float, float, float]

    def shadow(self, x: Plane, y: Plane, time: float) -> Plane:
        """Factor by which the tool darkens the tissue beside it."""
        along, across = self._axes(x - 0.06, y - 0.09, time)
        distance = np.maximum(np.abs(across) - num(self.width), -along)
        return f32(1 - 0.45 / (1 + np.exp(np.clip(distance * 18, -20, 20))))

    def paint(self, x: Plane, y: Plane, time: float, pixel: float, colour: Plane, mask: NDArray[np.uint8]) -> None:
        """Draw the tool into linear colour (3, H, W) and mask (H, W), in place."""
        along, across = self._axes(x, y, time)
        reach = 5.0 * self.width
        width = self.width * (1 + 0.25 * along)  # perspective: thicker towards the lens
        shaft = np.minimum(width - np.abs(across), along - reach)
        round_ = np.clip(across / np.maximum(width, 1e-3), -1, 1)
        sheen = np.sqrt(np.maximum(1 - round_ * round_, 0))
        streak = np.exp(-((round_ + 0.35) ** 2) * 22)
        if self.kind == HOOK:
            rod = 0.30 * self.width
            tip = np.maximum(
                _capsule(along, across, (reach, 0), (0.55 * self.width, 0), rod),
                _capsule(along, across, (0.55 * self.width, 0), (0.1 * self.width, 1.5 * self.width), 0.8 * rod),
            )
            collar = np.minimum(0.75 * width - np.abs(across), np.minimum(along - 0.8 * reach, reach - along + 0.02))
            shaft_tone = 0.012 + 0.05 * sheen + 0.35 * streak
            tip_tone = 0.45 + 0.5 * sheen
            tip = np.maximum(tip, collar)
        else:
            angle = self.opening * (0.5 + 0.5 * np.sin(2 * time + self.sway[2]))
            hinge, spread = (1.15 * reach, 0.0), 1.15 * reach * np.tan(angle)
            tip = np.maximum(
                _capsule(along, across, hinge, (0, spread), 0.80 * self.width, 0.38 * self.width),
                _capsule(along, across, hinge, (0, -spread), 0.80 * self.width, 0.38 * self.width),
            )
            shaft_tone = 0.10 + 0.30 * sheen + 0.75 * streak
            serrated = 0.5 + 0.5 * np.sin(along * (9 / self.width))
            tip_tone = 0.16 + 0.35 * sheen + 0.12 * serrated
        metal = np.array(self.metal, np.float32)[:, None, None]
        light = f32(1.35 / (1 + 0.25 * (x * x + y * y)))
        for part, tone in ((shaft, shaft_tone), (tip, tip_tone)):
            alpha = np.clip(part * (0.8 / pixel) + 0.5, 0, 1)
            colour += alpha * (f32(tone * light) * metal - colour)
            mask[part > 0] = self.kind

    def _axes(self, x: Plane, y: Plane, time: float) -> tuple[Plane, Plane]:
        """Distance from the tip along the shaft, and across it."""
        ax, ay, phase, rate = self.sway
        tip = (self.tip[0] + ax * np.sin(rate * time + phase), self.tip[1] + ay * np.cos(0.8 * rate * time + phase))
        length = np.hypot(self.entry[0] - tip[0], self.entry[1] - tip[1])
        ux, uy = (self.entry[0] - tip[0]) / length, (self.entry[1] - tip[1]) / length
        dx, dy = x - num(tip[0]), y - num(tip[1])
        return dx * num(ux) + dy * num(uy), dx * num(-uy) + dy * num(ux)


class Shot:
    """One clip of a video: the camera's pose and drift, the tools, smoke and blur, and the organs' outlines."""

    def __init__(self, seed: int, video: int, cast: Cast, clip: int) -> None:
        self.anatomy = anatomy = _anatomy(seed, video, cast)
        self._key = (seed, video, clip)
        rng = philox(seed, video, clip, SHOT)
        self._shift = rng.normal(0, 0.13, 2)
        self._turn = anatomy.turn + rng.normal(0, 0.10)
        self._zoom = float(np.exp(rng.normal(0, 0.10)))
        self._drift = rng.normal(0, 0.03, 4)
        self._phase = rng.uniform(0, 2 * np.pi, 4)
        hooks = _due(clip, cast.hooks, phase=video * 0.377)
        graspers = sum(_due(clip, min(1.0, max(0.0, cast.graspers - i)), phase=video * 0.618 + i) for i in range(2))
        self.tools = tuple(self._tool(rng, kind, i) for i, kind in enumerate([GRASPER] * graspers + [HOOK] * hooks))
        smoky = rng.random() < (0.35 if hooks else 0.08)
        self._smoke = float(rng.uniform(0.25, 0.6)) if smoky else 0.0
        self._noise = float(rng.uniform(0.006, 0.018))
        self._blur = bool(rng.random() < 0.2)
        self.exposure = float(np.exp(rng.normal(0, 0.08)))
        self.outlines: dict[int, float] = {}
        self._decide_outlines()

    def fields(self, x: Plane, y: Plane, time: float, pixel: float) -> tuple[dict[int, Plane], Plane]:
        """The field of each tissue that occurs, from the back to the front, and the texture planes beneath."""
        a = self.anatomy
        pulse = 0.006 * np.sin(2 * np.pi * 1.2 * time + self._phase[0])
        breath = 0.020 * np.sin(2 * np.pi * 0.25 * time + self._phase[1])
        drift = self._drift * np.sin(np.array([0.9, 0.7, 0.5, 0.6]) * time + self._phase)
        turn = self._turn + drift[2]
        zoom = self._zoom * (1 + drift[3])
        cos, sin = num(np.cos(turn) / zoom), num(np.sin(turn) / zoom)
        x = x * num(a.mirror)
        u = cos * x + sin * y + num(self._shift[0] + drift[0])
        v = cos * y - sin * x + num(self._shift[1] + drift[1] + breath)
        v = f32(v + num(pulse) * np.sin(3 * u))
        texture = sample(u + num(a.offset[0]), v + num(a.offset[1]), pixel)
        wu, wv = u + 0.09 * texture[0], v + 0.09 * texture[1]
        makers = {
            FAT: lambda: _fat(a, wu, wv, texture),
            GUT: lambda: _gut(a, u + 0.03 * texture[0], v + 0.03 * texture[1]),
            LIVER: lambda: _liver(a, u + 0.035 * texture[0], v + 0.035 * texture[1]),
            VEIN: lambda: _vein(a, u, v),
            LIGAMENT: lambda: _ligament(a, wu, wv, texture),
            CONNECTIVE: lambda: _connective(a, wu, wv, texture),
            GALLBLADDER: lambda: _gallbladder(a, u + 0.02 * texture[0], v + 0.02 * texture[1]),
            DUCT: lambda: _duct(a, u + 0.02 * texture[0], v),
            BLOOD: lambda: _blood(a, wu, wv, texture),
        }
        return {k: f32(makers[k]()) for k in BACK_TO_FRONT if a.cast.shares[k]}, texture

    def smoke(self, x: Plane, y: Plane, time: float, pixel: float, colour: Plane) -> None:
        """Cover linear colour with drifting smoke and the lens's constant haze, in place."""
        colour += num(self.anatomy.haze)
        if self._smoke:
            plume = sample(0.5 * x + num(0.10 * time), 0.5 * y + num(0.22 * time), pixel)[0]
            cover = np.clip(num(self._smoke) * (0.55 + 0.45 * plume), 0, 0.85)
            colour += cover * (0.42 - colour)

    def expose(self, colour: Plane, frame: int) -> NDArray[np.uint8]:
        """From linear light to 8-bit RGB with the camera's colour balance, blur and noise."""
        colour *= (self.anatomy.white * num(self.exposure))[:, None, None]
        np.maximum(colour, 0, out=colour)
        colour /= 1 + 0.28 * colour  # a soft shoulder, so that glare clips late
        np.sqrt(colour, out=colour)
        if self._blur:
            colour[:, 1:-1] = 0.5 * colour[:, 1:-1] + 0.25 * (colour[:, :-2] + colour[:, 2:])
            colour[:, :, 1:-1] = 0.5 * colour[:, :, 1:-1] + 0.25 * (colour[:, :, :-2] + colour[:, :, 2:])
        seed, video, clip = self._key
        noise = philox(seed, video, clip, frame).standard_normal(colour.shape, np.float32)
        colour += num(self._noise) * noise
        picture: NDArray[np.uint8] = np.clip(colour * 255 + 0.5, 0, 255).astype(np.uint8)
        return picture

    def _tool(self, rng: np.random.Generator, kind: int, number: int) -> Tool:
        a = self.anatomy
        middle = 0.5 * (a.neck + a.fundus) * [a.mirror, 1] - self._shift
        target = middle + rng.normal(0, 0.16, 2) + (0.25 if number else 0.0) * rng.normal(0, 1, 2)
        side = rng.choice([-1.0, 1.0]) if number != 1 else -1.0
        angle = np.deg2rad(rng.uniform(-35, 55))
        entry = target + 2.2 * np.array([side * np.cos(angle), np.sin(angle)])
        grey = rng.uniform(0.75, 1.0)
        return Tool(
            kind=kind,
            entry=(float(entry[0]), float(entry[1])),
            tip=(float(target[0]), float(target[1])),
            sway=tuple(float(value) for value in (*rng.normal(0, 0.05, 2), rng.uniform(0, 6), rng.uniform(1, 3))),  # type: ignore[arg-type]
            width=float(rng.uniform(0.045, 0.062) if kind == GRASPER else rng.uniform(0.048, 0.062)),
            opening=float(rng.uniform(0.05, 0.35)),
            metal=(float(grey), float(grey * rng.uniform(0.95, 1.02)), float(grey * rng.uniform(0.95, 1.08))),
        )

    def _decide_outlines(self) -> None:
        """Place each organ's outline where its visible share of the middle frame is what the cast asks for."""
        x, y = _grid(*COARSE)
        time = FRAMES_PER_CLIP / FPS / 2
        fields, _ = self.fields(x, y, time, 2 / COARSE[0])
        mask = np.zeros(COARSE, np.uint8)
        for tool in self.tools:
            tool.paint(x, y, time, 2 / COARSE[0], np.zeros((3, *COARSE), np.float32), mask)
        free = (mask == 0) & (self.anatomy.view(x, y) > 0)
        for k in reversed(fields):
            share = self.anatomy.cast.shares[k]
            inside = np.sort(fields[k][free])
            wanted = min(inside.size - 1, round(share * mask.size))
            outline = float(inside[-1 - wanted])
            self.outlines[k] = outline
            free &= fields[k] <= outline


def _fat(a: Anatomy, u: Plane, v: Plane, texture: Plane) -> Plane:
    slope = u * num(np.cos(a.fat_side)) + v * num(np.sin(a.fat_side))
    lobe = 0.75 - np.hypot(u - num(a.fat_lobe[0]), v - num(a.fat_lobe[1]))
    return f32(np.maximum(slope, lobe) + 0.05 * texture[1] + 0.05 * texture[2])


def _liver(a: Anatomy, u: Plane, v: Plane) -> Plane:
    major, minor, turn = a.liver_axes
    du, dv = u - num(a.liver[0]), v - num(a.liver[1])
    along = (du * num(np.cos(turn)) + dv * num(np.sin(turn))) * num(1 / major)
    across = (dv * num(np.cos(turn)) - du * num(np.sin(turn))) * num(1 / minor)
    left = num(minor) * (1 - np.hypot(along, across))
    right = 0.55 - np.hypot(0.6 * (u - num(a.right_lobe[0])), v - num(a.right_lobe[1]))
    return f32(np.maximum(left, right) + 0.08 * np.exp(-np.abs(left - right) * 8))


def _gallbladder(a: Anatomy, u: Plane, v: Plane) -> Plane:
    fundus = 0.24 * a.plump
    return _capsule(u, v, tuple(a.neck), tuple(a.fundus), 0.35 * fundus, fundus)


def _duct(a: Anatomy, u: Plane, v: Plane) -> Plane:
    return _capsule(u, v, tuple(a.neck), (a.neck[0] + 0.30, a.neck[1] + 0.14), 0.03, 0.03)


def _gut(a: Anatomy, u: Plane, v: Plane) -> Plane:
    centre_u, centre_v, radius, folds, middle = a.gut
    du, dv = u - num(centre_u), v - num(centre_v)
    angle = np.arctan2(dv, du)
    tube = 0.18 + 0.010 * np.sin(num(folds) * angle) - np.abs(np.hypot(du, dv) - num(radius))
    return f32(np.minimum(tube, 0.28 + 0.35 * (0.45 - np.abs(angle - num(middle)))))


def _vein(a: Anatomy, u: Plane, v: Plane) -> Plane:
    start, height, turn = a.vein
    du, dv = u - num(start), v - num(height)
    along = du * num(np.cos(turn)) + dv * num(np.sin(turn))
    across = dv * num(np.cos(turn)) - du * num(np.sin(turn))
    return f32(np.minimum(0.05 - np.abs(across - 0.04 * np.sin(6 * along)), 0.3 - np.abs(along - 0.3)))


def _ligament(a: Anatomy, u: Plane, v: Plane, texture: Plane) -> Plane:
    foot, slant = a.ligament
    below = np.maximum(v, 0)
    return f32(0.1 - np.abs(u - num(foot) + num(1 / slant) * (v + 0.2)) * (1 + 0.5 * below) - below + 0.03 * texture[1])


def _connective(a: Anatomy, u: Plane, v: Plane, texture: Plane) -> Plane:
    du, dv = u - num(a.neck[0] + 0.05), v - num(a.neck[1] + 0.02)
    return f32(0.4 - np.hypot(0.8 * du, dv) + 0.07 * texture[1] + 0.02 * texture[2])


def _blood(a: Anatomy, u: Plane, v: Plane, texture: Plane) -> Plane:
    du, dv = u - num(a.neck[0] - 0.1), v - num(a.neck[1] + 0.22)
    return f32(0.3 - np.hypot(0.6 * du, dv) + 0.14 * texture[1] + 0.10 * texture[0])


def _capsule(
    u: Plane, v: Plane, start: tuple[float, float], end: tuple[float, float], r0: float, r1: float | None = None
) -> Plane:
    """Depth inside a thick segment whose radius goes from r0 at the start to r1 at the end."""
    du, dv = end[0] - start[0], end[1] - start[1]
    along = np.clip(
        ((u - num(start[0])) * num(du) + (v - num(start[1])) * num(dv)) * num(1 / (du * du + dv * dv)), 0, 1
    )
    distance = np.hypot(u - num(start[0]) - along * num(du), v - num(start[1]) - along * num(dv))
    radius = r0 if r1 is None else r0 + num(r1 - r0) * along * along * (3 - 2 * along)
    return f32(radius - distance)


@lru_cache(maxsize=8)
def _grid(height: int, width: int) -> tuple[Plane, Plane]:
    """Pixel centres in picture coordinates: x and y, both (H, W)."""
    x = (np.arange(width, dtype=np.float32) + 0.5) * (2 * ASPECT / width) - ASPECT
    y = (np.arange(height, dtype=np.float32) + 0.5) * (2 / height) - 1
    plane_x, plane_y = np.meshgrid(x, y)
    return f32(plane_x), f32(plane_y)


def _due(clip: int, rate: float, phase: float) -> bool:
    """Whether an event of this rate falls on this clip: spread evenly by the golden ratio, so few clips suffice."""
    return ((clip + 1) * 0.6180339887 + phase) % 1 < rate


def _direction(angle: float) -> NDArray[np.float64]:
    return np.array([np.cos(angle), np.sin(angle)])


@lru_cache(maxsize=64)
def _anatomy(seed: int, video: int, cast: Cast) -> Anatomy:
    return Anatomy(seed, video, cast)


@lru_cache(maxsize=256)
def _shot(seed: int, video: int, cast: Cast, clip: int) -> Shot:
    return Shot(seed, video, cast, clip)
