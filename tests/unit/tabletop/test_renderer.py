"""Pictures: the same everywhere, and showing what the scene says where it says it."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from ssd1b.tabletop.world.degradations import DEGRADATIONS, degrade
from ssd1b.tabletop.world.renderer import in_picture, render, render_batch
from ssd1b.tabletop.world.scenes import (
    COLORS,
    LIGHTINGS,
    MATERIALS,
    PATTERNS,
    Light,
    Scene,
    Solid,
    relation,
    scene,
)
from ssd1b.tabletop.world.shapes import SHAPES

STANDING = Solid(
    shape="cube", color="red", size="large", material="rubber", scale=0.4, yaw=0.35, x=0.0, depth=0.0
)
PLAIN = Scene(
    solids=(STANDING,),
    background="gray",
    light=Light(azimuth=-0.9, elevation=0.85),
    degradation=None,
    seed=1,
)


def showing(background: str = "gray", **attributes: object) -> Scene:
    solid = replace(STANDING, **attributes)
    solid = replace(solid, yaw=min(solid.yaw, SHAPES[solid.shape].turn))
    return replace(PLAIN, solids=(solid,), background=background)


def mask(shown: Scene, which: int = 0, size: int | tuple[int, int] = 128) -> np.ndarray:
    """The pixels that a solid takes part in: those that its colour changes."""
    pictures = [
        render(
            replace(
                shown,
                degradation=None,
                solids=tuple(
                    replace(solid, color=color, material="rubber") if i == which else solid
                    for i, solid in enumerate(shown.solids)
                ),
            ),
            size,
        ).astype(int)
        for color in ("white", "black")
    ]
    return abs(pictures[0] - pictures[1]).max(axis=2) > 2


def test_a_scene_has_one_picture() -> None:
    for index in range(20):
        np.testing.assert_array_equal(render(scene(2, index)), render(scene(2, index)))


def test_pictures_stay_what_they_were() -> None:
    """Loose enough for another version of the JPEG or noise library, not for another look."""
    means = [render(scene(2, index)).mean() for index in range(8)]
    np.testing.assert_allclose(means, [93.4, 81.03, 48.32, 85.22, 149.23, 137.33, 80.56, 146.86], atol=0.3)


def test_pictures_are_arrays_of_bytes_of_the_asked_size() -> None:
    for size, shape in ((64, (64, 64)), ((160, 96), (96, 160)), ((96, 160), (160, 96)), (33, (33, 33))):
        for degradation in (None, *DEGRADATIONS):
            picture = render(replace(PLAIN, degradation=degradation), size)
            assert picture.shape == (*shape, 3)
            assert picture.dtype == np.uint8
            assert picture.flags.writeable and picture.flags.c_contiguous
    batch = render_batch([scene(2, 0), scene(2, 1)], 64)
    np.testing.assert_array_equal(batch[1], render(scene(2, 1), 64))


def test_a_larger_picture_shows_the_same_more_finely() -> None:
    for index in (0, 1, 2, 3, 4, 5):
        shown = replace(scene(2, index), degradation=None)
        fine = render(shown, 256).reshape(128, 2, 128, 2, 3).mean(axis=(1, 3))
        assert abs(fine - render(shown)).mean() < 1.0


def test_a_wide_picture_shows_the_square_in_its_middle() -> None:
    shown = replace(scene(2, 3), degradation=None)
    np.testing.assert_array_equal(mask(shown, size=(192, 128))[:, 32:160], mask(shown))


def test_solids_are_in_the_picture_and_what_one_hides_of_another_is_less_than_half() -> None:
    for index in range(60):
        shown = scene(9, index)
        masks = [mask(shown, which) for which in range(len(shown.solids))]
        for each in masks:
            assert each.sum() > 150
            assert not (each[0].any() or each[-1].any() or each[:, 0].any() or each[:, -1].any())
        if len(masks) == 2 and relation(*shown.solids) in ("left", "right"):
            assert not (masks[0] & masks[1]).any()
        for which, seen in enumerate(masks):
            alone = mask(replace(shown, solids=(shown.solids[which],)))
            assert seen.sum() > 0.5 * alone.sum()


def test_left_is_left_in_the_picture() -> None:
    for index in range(60):
        shown = scene(9, index)
        middles = [np.nonzero(mask(shown, which))[1].mean() for which in range(len(shown.solids))]
        if len(middles) == 2:
            assert (middles[0] < middles[1]) == (shown.solids[0].x < shown.solids[1].x)


def test_large_is_larger_than_small() -> None:
    for shape in SHAPES:
        small, large = (mask(showing(shape=shape, scale=scale)).sum() for scale in (0.24, 0.38))
        assert large > 2 * small


def liveliness(picture: np.ndarray, inside: np.ndarray) -> float:
    """How much the brightness changes from pixel to pixel, as a share of it."""
    gray = picture.mean(axis=2)
    steps = abs(np.diff(gray, axis=1))[inside[:, 1:] & inside[:, :-1]]
    return steps.mean() / gray[inside].mean()


@pytest.mark.parametrize("shape", SHAPES)
def test_metal_and_rubber_look_different(shape: str) -> None:
    ratios = []
    for color, background in itertools.product(COLORS, ("white", "black")):
        rubber, metal = (
            showing(background, shape=shape, color=color, material=material) for material in MATERIALS
        )
        inside = mask(rubber)
        pictures = [render(shown).astype(float) for shown in (rubber, metal)]
        assert abs(pictures[0] - pictures[1])[inside].mean() > 6
        ratios.append(liveliness(pictures[1], inside) / liveliness(pictures[0], inside))
    assert np.median(ratios) > 1.2


def tint(pixels: np.ndarray) -> np.ndarray:
    return pixels / pixels.max(axis=-1, keepdims=True)


@pytest.mark.parametrize("material", MATERIALS)
@pytest.mark.parametrize("color", COLORS)
def test_the_lit_part_of_a_solid_is_nearest_to_its_own_word(color: str, material: str) -> None:
    lit_from = (("black", -0.3, -1.15, 0.75), ("cyan", 0.7, -0.65, 0.95), ("white", 0.4, -0.9, 0.85))
    for shape, (background, yaw, azimuth, elevation) in itertools.product(SHAPES, lit_from):
        shown = showing(background, shape=shape, color=color, material=material, yaw=yaw)
        shown = replace(shown, light=Light(azimuth=azimuth, elevation=elevation))
        lit = np.quantile(render(shown)[mask(shown)].astype(float), 0.75, axis=0)
        others = {name: np.array(value, float) for name, value in COLORS.items()}
        nearest = min(
            others,
            key=lambda name: abs(tint(others[name]) - tint(lit)).sum() + abs(others[name] - lit).sum() / 400,
        )
        assert nearest == color


@pytest.mark.parametrize("color", COLORS)
def test_a_background_is_nearest_to_its_own_word(color: str) -> None:
    corner = render(showing(color))[96:, :32].reshape(-1, 3).mean(axis=0)
    assert min(COLORS, key=lambda name: abs(np.array(COLORS[name]) - corner).sum()) == color


@pytest.mark.parametrize("material", MATERIALS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("color", COLORS)
def test_a_solid_shows_on_a_table_of_its_own_color(color: str, shape: str, material: str) -> None:
    shown = showing(color, shape=shape, color=color, material=material)
    empty = render(replace(shown, solids=()), 64).astype(float)
    assert abs(render(shown, 64) - empty)[mask(shown, size=64)].max(axis=-1).mean() > 12


def test_shadows_fall_away_from_the_light() -> None:
    for azimuth, side in ((-0.9, np.s_[:, 64:]), (0.9, np.s_[:, :64])):
        shown = replace(showing("white", shape="sphere"), light=Light(azimuth=azimuth, elevation=0.85))
        empty = render(replace(shown, solids=())).astype(int)
        dark = (empty - render(shown)).mean(axis=2) * ~mask(shown) > 40
        assert dark.sum() > 200
        assert dark[side].sum() > 0.9 * dark.sum()


def test_a_solid_throws_its_shadow_on_its_neighbour() -> None:
    caster = replace(STANDING, x=-0.42, depth=0.0, scale=0.43, shape="cylinder", yaw=0.0)
    target = replace(STANDING, x=0.3, depth=0.15, scale=0.38, color="white", shape="sphere", yaw=0.0)
    light = Light(azimuth=-1.15, elevation=0.75)
    alone = replace(PLAIN, solids=(target,), light=light)
    inside = mask(alone)
    darker = render(alone).astype(int) - render(replace(alone, solids=(caster, target)))
    assert (darker[inside].mean(axis=1) > 30).sum() > 50


def test_edges_are_smooth() -> None:
    """Across the edge of a white sphere on black, the columns do not all jump by the same amount."""
    row = render(showing("black", shape="sphere", color="white"))[:, 40:60].mean(axis=2)
    steps = abs(np.diff(row, axis=0)).max(axis=0)
    levels = {int(step) // 12 for step in steps}
    assert len(levels) > 4


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_degradations_change_the_picture_by_their_own_seed(name: str) -> None:
    clean = render(PLAIN)
    spoiled = [render(replace(PLAIN, degradation=name, seed=seed)) for seed in (1, 1, 2)]
    assert abs(clean.astype(int) - spoiled[0]).mean() > 1
    np.testing.assert_array_equal(spoiled[0], spoiled[1])
    np.testing.assert_array_equal(spoiled[0], degrade(clean, name, 1))
    if name != "monochrome":
        assert any((degrade(clean, name, seed) != spoiled[0]).any() for seed in range(2, 6))


def roughness(picture: np.ndarray) -> float:
    return float(abs(np.diff(picture.astype(float), axis=1)).mean())


def test_degradations_are_what_they_are_called() -> None:
    clean = render(scene(2, 3) if scene(2, 3).degradation is None else PLAIN)
    sharpest = abs(np.diff(clean.astype(int), axis=1)).max()
    assert abs(np.diff(degrade(clean, "blurry", 3).astype(int), axis=1)).max() < sharpest / 2
    gray = degrade(clean, "monochrome", 3).astype(int)
    assert np.ptp(gray, axis=2).max() == 0
    np.testing.assert_allclose(gray[..., 0], clean @ [0.299, 0.587, 0.114], atol=1)
    pixelated = degrade(clean, "low quality", 3)
    assert np.mean((np.diff(pixelated.astype(int), axis=1) == 0).all(axis=2)) > 0.75
    assert roughness(degrade(clean, "noisy", 3)) > 5 * roughness(clean)
    # JPEG's blocks of 8: the steps between blocks are larger than those within.
    steps = abs(np.diff(degrade(clean, "jpeg artifacts", 3).astype(int), axis=1)).mean(axis=(0, 2))
    assert steps[7::8].mean() > 1.5 * np.delete(steps, np.s_[7::8]).mean()


def test_no_degradation_leaves_the_picture() -> None:
    picture = render(PLAIN)
    assert degrade(picture, None, 1) is picture


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_darkens_some_of_the_background_and_nothing_else(pattern: str) -> None:
    plain, patterned = (render(replace(PLAIN, pattern=each)).astype(int) for each in (None, pattern))
    solid = mask(PLAIN)
    # Without its outermost pixels, in which the table has a share.
    within = solid & np.logical_and.reduce([np.roll(solid, by, axis) for by in (-1, 1) for axis in (0, 1)])
    darker = (plain - patterned).max(axis=2) > 10
    assert 0.15 < darker[~solid].mean() < 0.6
    assert not darker[within].any()
    assert (plain - patterned).min() >= 0


def test_lightings_look_different_and_warm_light_is_warm() -> None:
    pictures = {}
    for name, lighting in LIGHTINGS.items():
        light = Light(
            azimuth=sum(lighting.azimuth) / 2, elevation=sum(lighting.elevation) / 2, tint=lighting.tint
        )
        pictures[name] = render(replace(PLAIN, light=light)).astype(float)
    for one, other in itertools.combinations(pictures.values(), 2):
        assert abs(one - other).mean() > 1
    warm, usual = pictures["in warm light"].mean(axis=(0, 1)), render(PLAIN).mean(axis=(0, 1))
    assert usual[0] == pytest.approx(warm[0], abs=1)
    assert warm[0] > warm[1] > warm[2]


def test_a_solid_on_another_is_seen_in_full_and_stands_higher() -> None:
    below = replace(STANDING, shape="cylinder", yaw=0.0)
    above = replace(
        STANDING, shape="sphere", yaw=0.0, scale=0.22, lift=SHAPES["cylinder"].extent[1] * below.scale
    )
    stacked = replace(PLAIN, solids=(below, above))
    alone = replace(PLAIN, solids=(above,))
    np.testing.assert_array_equal(mask(stacked, 1) | mask(alone), mask(stacked, 1))
    row = np.nonzero(mask(alone).any(axis=1))[0].mean()
    assert (1 - in_picture(above)[1]) / 2 * 128 == pytest.approx(row, abs=2)
    assert in_picture(above)[1] > in_picture(below)[1]
