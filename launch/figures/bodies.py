"""Bodies of Brax's environments drawn without a display or OpenGL: orthographic pictures, and moving ones as GIF.

A point `p` is at `(r.p, u.p)` of the picture, where `r` and `u` point to its right and up; the camera looks along
`d = u x r`, downwards. The floor is a chequerboard of squares of `TILE` metres, so that movement over it is seen.
"""

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from launch.figures.style import INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL.Image import Image

PLANE, SPHERE, CAPSULE, CYLINDER, BOX = 0, 2, 3, 5, 6
DRAWN = (SPHERE, CAPSULE, CYLINDER, BOX)
TILE = 1.0
AZIMUTH, ELEVATION = math.radians(20), math.radians(22)
WIDTH, HEIGHT, TOP, DPI = 3.6, 2.7, 0.62, 100
MOST_BYTES, MOST_FRAMES = 2_000_000, 150
FRAME_SECONDS = 0.1
COLOURS = 64

FLOOR, TILES, SHADOW, SKY = "#F4F1EA", "#E4DFD3", "#C9C2B3", "#FAFAF8"
TRUNK, LIMBS, FIXED = "#2F6690", ("#D9783B", "#E9A23B"), "#B8B8B8"

RIGHT = np.array([math.cos(AZIMUTH), math.sin(AZIMUTH), 0.0])
AWAY = np.array([-math.sin(AZIMUTH), math.cos(AZIMUTH), 0.0])
UP = math.sin(ELEVATION) * AWAY + np.array([0.0, 0.0, math.cos(ELEVATION)])
DEPTH = math.cos(ELEVATION) * AWAY - np.array([0.0, 0.0, math.sin(ELEVATION)])
_TURN = np.linspace(0, 2 * math.pi, 28, endpoint=False)
_RING = np.stack([np.cos(_TURN), np.sin(_TURN)], axis=1)


class Geoms(NamedTuple):
    """The shapes of a body, `n` of them, as MuJoCo numbers and measures them.

    Attributes:
        kind: int `[n]`: one of `PLANE`, `SPHERE`, `CAPSULE`, `CYLINDER`, `BOX`; others are not drawn.
        link: int `[n]`, the link that each belongs to; -1: to the world.
        position: `[n, 3]`, metres, in the frame of the link.
        rotation: `[n, 4]`, quaternion `w x y z` likewise.
        size: `[n, 3]`: radius; radius and half length along z; or half lengths.
    """

    kind: np.ndarray
    link: np.ndarray
    position: np.ndarray
    rotation: np.ndarray
    size: np.ndarray


class Moves(NamedTuple):
    """Where links are: `position` `[frame, link, 3]`, metres, and `rotation` `[frame, link, 4]`, `w x y z`."""

    position: np.ndarray
    rotation: np.ndarray


class Panel(NamedTuple):
    """A body that moves: what stands above it, where its links are, a line for every frame."""

    caption: str
    moves: Moves
    lines: Sequence[str]


class Camera(NamedTuple):
    """What a picture shows: the point in its middle `[frame, 3]`, and how far it reaches upwards, in metres."""

    centre: np.ndarray
    reach: float


def geoms_of(system: Any) -> Geoms:
    """The shapes of a `brax.System`."""
    fields = (system.geom_type, system.geom_bodyid, system.geom_pos, system.geom_quat, system.geom_size)
    kind, body, position, rotation, size = map(np.asarray, fields)
    return Geoms(kind, body - 1, position, rotation, size)


def rotated(rotation: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points `[..., 3]` turned by quaternions `[..., 4]`."""
    w, axis = rotation[..., :1], rotation[..., 1:]
    twice = 2 * np.cross(axis, points)
    return points + w * twice + np.cross(axis, twice)


def hull(points: np.ndarray) -> np.ndarray:
    """The corners of the convex hull of points `[n, 2]`, counterclockwise; those on its edges are left out."""
    ordered = sorted(map(tuple, points.tolist()))

    def half(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        found: list[tuple[float, float]] = []
        for x, y in points:
            while len(found) > 1:
                (ax, ay), (bx, by) = found[-2:]
                if (bx - ax) * (y - ay) - (by - ay) * (x - ax) > 0:
                    break
                found.pop()
            found.append((x, y))
        return found[:-1]

    return np.array(half(ordered) + half(ordered[::-1]))


def outline(points: np.ndarray, radius: float) -> np.ndarray:
    """What is seen of the convex hull of balls of that radius around points `[n, 3]`: a polygon `[corner, 2]`."""
    seen = np.stack([points @ RIGHT, points @ UP], axis=1)
    return hull((seen[:, None] + radius * _RING).reshape(-1, 2))


def shadow(points: np.ndarray, radius: float, ground: float) -> np.ndarray:
    """The same balls' shadow on level ground, light falling straight down: a polygon of the picture, `[corner, 2]`."""
    level = np.concatenate([radius * _RING, np.zeros((len(_RING), 1))], axis=1)
    lying = points * [1, 1, 0] + [0, 0, ground]
    return outline((lying[:, None] + level).reshape(-1, 3), 0.0)


def skeleton(kind: int, size: np.ndarray) -> tuple[np.ndarray, float]:
    """Points `[n, 3]` and a radius: a shape, in its own frame, is the convex hull of these balls."""
    if kind == SPHERE:
        return np.zeros((1, 3)), float(size[0])
    if kind == CAPSULE:
        return np.array([[0, 0, -size[1]], [0, 0, size[1]]]), float(size[0])
    if kind == CYLINDER:
        ends = [np.concatenate([size[0] * _RING, np.full((len(_RING), 1), z)], axis=1) for z in (-size[1], size[1])]
        return np.concatenate(ends), 0.0
    return np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) * size, 0.0


def placed(geoms: Geoms, position: np.ndarray, rotation: np.ndarray) -> list[tuple[int, np.ndarray, float]]:
    """Of every shape that is drawn its number, and its skeleton's points in the world, with the links at one place."""
    found = []
    for i in np.flatnonzero(np.isin(geoms.kind, DRAWN)).tolist():
        points, radius = skeleton(geoms.kind[i], geoms.size[i])
        points = rotated(geoms.rotation[i], points) + geoms.position[i]
        link = geoms.link[i]
        if link >= 0:
            points = rotated(rotation[link], points) + position[link]
        found.append((i, points, radius))
    return found


def camera_of(geoms: Geoms, moves: Moves) -> Camera:
    """A camera that follows the first link where that goes farther than the body is large, and else stands still."""
    first = placed(geoms, moves.position[0], moves.rotation[0])
    own = [(points, radius) for i, points, radius in first if geoms.link[i] >= 0]
    ends = np.concatenate([points + sign * radius for points, radius in own for sign in (-1, 1)])
    middle, size = (ends.max(0) + ends.min(0)) / 2, float(np.linalg.norm(ends.max(0) - ends.min(0)))
    root = moves.position[:, 0]
    ways = root.max(0) - root.min(0)
    centre = np.tile(middle, (len(root), 1))
    if np.max(ways[:2]) > size / 2:
        centre[:, :2] = root[:, :2]
        return Camera(centre, 0.5 * size)
    return Camera(centre, 0.5 * (size + float(np.max(ways))))


def draw(
    ax: "Axes", geoms: Geoms, position: np.ndarray, rotation: np.ndarray, centre: np.ndarray, reach: float
) -> None:
    """Draw the links at one place, `[link, 3]` and `[link, 4]`; the picture reaches `reach` metres up from `centre`."""
    from matplotlib.collections import PolyCollection

    x, y = float(centre @ RIGHT), float(centre @ UP)
    wide = reach * WIDTH / HEIGHT
    ax.set(xlim=(x - wide, x + wide), ylim=(y - reach, y + reach), xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    shapes = [one for one in placed(geoms, position, rotation) if np.isfinite(one[1]).all()]
    shapes.sort(key=lambda one: -float(np.mean(one[1] @ DEPTH)))
    planes = np.flatnonzero(geoms.kind == PLANE)
    ax.set_facecolor(FLOOR if len(planes) else SKY)
    if len(planes):
        ground = float(geoms.position[planes[0], 2])
        ax.add_collection(PolyCollection(_tiles(centre, wide, reach, ground), facecolors=TILES, edgecolors="none"))
        cast = [shadow(points, radius, ground) for _, points, radius in shapes]
        ax.add_collection(PolyCollection(cast, facecolors=SHADOW, edgecolors="none"))
    faces, colours, edges = [], [], []
    for i, points, radius in shapes:
        colour = _colour(int(geoms.link[i]))
        faces.append(outline(points, radius))
        colours.append(colour)
        edges.append(_mixed(colour, "#000000", 0.45))
        if radius:
            lit = points + radius * (0.32 * UP - 0.22 * RIGHT)
            faces.append(outline(lit, 0.42 * radius))
            colours.append(_mixed(colour, "#FFFFFF", 0.3))
            edges.append("none")
    ax.add_collection(PolyCollection(faces, facecolors=colours, edgecolors=edges, linewidths=0.8))


def frames(geoms: Geoms, panels: Sequence[Panel], stride: int, below: str) -> list["Image"]:
    """Pictures of the panels side by side, every `stride`-th frame; a panel that is over stays, paler, as it ended."""
    from PIL import Image

    from launch.figures import figure

    cameras = [camera_of(geoms, panel.moves) for panel in panels]
    reach, longest = max(camera.reach for camera in cameras), max(len(panel.moves.position) for panel in panels)
    size = (WIDTH * len(panels) + 0.1 * (len(panels) + 1), HEIGHT + TOP + 0.3)
    found = []
    drawing, _ = figure.new_figure(0)
    drawing.set_size_inches(size)
    drawing.set_layout_engine("none")
    drawing.set_dpi(DPI)
    for now in range(0, longest, stride):
        drawing.clear()
        drawing.text(0.1 / size[0], 0.1 / size[1], below, fontsize=7.5, color="#777777")
        for place, (panel, camera) in enumerate(zip(panels, cameras, strict=True)):
            last = len(panel.moves.position) - 1
            at, left = min(now, last), 0.1 + place * (WIDTH + 0.1)
            ax = drawing.add_axes((left / size[0], 0.3 / size[1], WIDTH / size[0], HEIGHT / size[1]))
            draw(ax, geoms, panel.moves.position[at], panel.moves.rotation[at], camera.centre[at], reach)
            if now > last:
                ax.axvspan(*ax.get_xlim(), color="white", alpha=0.45, zorder=5)
            ax.text(0.02, 0.96, panel.lines[at], transform=ax.transAxes, va="top", fontsize=8, color=INK, zorder=6)
            first, _, rest = panel.caption.partition("\n")
            top = (0.3 + HEIGHT) / size[1]
            drawing.text(left / size[0], top + 0.33 / size[1], first, fontsize=10, color=INK, weight="bold")
            drawing.text(left / size[0], top + 0.11 / size[1], rest, fontsize=9, color=INK)
        drawing.canvas.draw()
        found.append(Image.fromarray(np.asarray(drawing.canvas.buffer_rgba())[..., :3].copy()))  # type: ignore[attr-defined]
    return found


def gif(images: Sequence["Image"], seconds: float) -> bytes:
    """The pictures as a GIF that begins again when it is over, each shown for so long."""
    from PIL import Image

    # All that is drawn is of few colours, beside which those of smoothed edges are rare.
    some = [np.asarray(images[i]).reshape(-1, 3) for i in sorted({0, len(images) // 2, len(images) - 1})]
    colours, counts = np.unique(np.concatenate(some), axis=0, return_counts=True)
    palette = Image.new("P", (1, 1))
    palette.putpalette(colours[np.argsort(-counts)[:COLOURS]].tobytes())
    drawn = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    file = io.BytesIO()
    drawn[0].save(file, "GIF", save_all=True, append_images=drawn[1:], duration=round(1000 * seconds), loop=0)
    return file.getvalue()


def moving(geoms: Geoms, panels: Sequence[Panel], step_seconds: float, below: str = "") -> bytes:
    """The panels as a GIF of at most `MOST_FRAMES` frames and `MOST_BYTES`, in real time unless it says otherwise.

    Frames of `panels` are `step_seconds` apart; as many are left out as that needs. Under the panels stands `below`.
    """
    longest = max(len(panel.moves.position) for panel in panels)
    stride = max(1, math.floor(FRAME_SECONDS / step_seconds + 1e-6), math.ceil(longest / MOST_FRAMES))
    while True:
        seconds = round(min(FRAME_SECONDS, stride * step_seconds), 2) or 0.01
        speed = stride * step_seconds / seconds
        told = "in real time" if abs(speed - 1) < 0.05 else f"{speed:.2g} times as fast as it is"
        made = gif(frames(geoms, panels, stride, f"{below}, {told}".removeprefix(", ")), seconds)
        if len(made) <= MOST_BYTES or stride >= longest:
            return made
        stride *= 2


def _tiles(centre: np.ndarray, wide: float, reach: float, ground: float) -> list[np.ndarray]:
    """The dark squares of the floor that a picture may show, as its polygons."""
    # What is seen in the middle of the picture lies on the floor this far beyond the centre.
    middle = centre + DEPTH * (centre[2] - ground) / -DEPTH[2]
    far = math.hypot(wide, reach / math.sin(ELEVATION)) + 2 * TILE
    x, y = (math.floor(each / TILE) for each in middle[:2])
    span = math.ceil(far / TILE)
    corners = TILE * np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
    found = []
    for i in range(x - span, x + span + 1):
        for j in range(y - span + (i + y - span) % 2, y + span + 1, 2):
            tile = corners + [i * TILE, j * TILE, ground]
            right, up = (tile - middle) @ RIGHT, (tile - middle) @ UP
            if np.min(np.abs(right)) < wide + TILE and np.min(np.abs(up)) < reach + TILE:
                found.append(np.stack([tile @ RIGHT, tile @ UP], axis=1))
    return found


def _colour(link: int) -> str:
    return FIXED if link < 0 else TRUNK if link == 0 else LIMBS[link % 2]


def _mixed(colour: str, other: str, share: float) -> str:
    from matplotlib.colors import to_hex, to_rgb

    return to_hex((1 - share) * np.array(to_rgb(colour)) + share * np.array(to_rgb(other)))
