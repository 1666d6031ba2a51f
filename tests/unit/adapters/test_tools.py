"""Converting, merging, resizing and extracting change what they say, and nothing else."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from adapter_files import attention, delta, random_lora, write_lora, written
from ssd1b.actions.adapters import (
    Output,
    bake_adapters,
    convert_adapter,
    extract_adapter,
    merge_adapters,
)
from ssd1b.adapters.combining import combined, copied
from ssd1b.adapters.dialects import DIALECTS, spelled
from ssd1b.adapters.low_rank import decompose, decompose_product
from ssd1b.adapters.matching import match, own_layout, own_layouts
from ssd1b.adapters.merging import find_changes, fit_advice, merge
from ssd1b.adapters.names import PARTS, Module, shapes
from ssd1b.adapters.projection import Subspaces, project, subspaces
from ssd1b.adapters.ranks import RULES, Cut
from ssd1b.adapters.reading import open_adapter
from ssd1b.errors import ConflictError, InputError
from ssd1b.layer_map import LayerMap
from ssd1b.layouts import SDXL, ModelLayout, model_layout
from ssd1b.loras import lora_of
from ssd1b.model import Model
from tiny import DRAWABLE, TINY, tiny

LARGE = tiny(SDXL)
MINI = model_layout("mini-sdxl")
RESNET = Module("unet", "down_blocks.0.resnets.0.conv1")


def some(layout: ModelLayout) -> list[Module]:
    """Attention of all networks, and a convolution."""
    return [*(module for part in PARTS for module in attention(layout, part)), RESNET]


def changes_of(path: Path, layout: ModelLayout) -> dict[tuple[str, str], Tensor]:
    """The change of each tensor of a model by a file."""
    found = find_changes([lora_of(path)], layout)
    return {
        (part, name): merge(name, torch.zeros(shapes(part, layout)[name]), changes)
        for part, changed in found.items()
        for name, changes in changed.items()
    }


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_spelling_and_back_loses_nothing(dtype: torch.dtype, tmp_path: Path) -> None:
    adapter = random_lora(TINY, some(TINY), rank=3, alpha=4.5)
    for number, tensors in enumerate(adapter.values()):
        tensors["alpha"] = torch.tensor(1.5 if number % 3 else 4.5)
        tensors |= {role: tensors[role].to(dtype) for role in ("up", "down")}
    first = write_lora(tmp_path / "kohya.safetensors", adapter, TINY, ss_steps="7")
    path, expected = first, changes_of(first, TINY)
    for dialect in ("diffusers", "comfyui", "kohya"):
        tensors, header = spelled(copied(match(open_adapter(path), TINY)), TINY, dialect)
        path = tmp_path / f"{dialect}.new.safetensors"
        save_file(tensors, path, metadata={"format": "pt", **header})
        found = changes_of(path, TINY)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)
    before, after = load_file(first), load_file(path)
    assert before.keys() == after.keys()
    assert all(
        torch.equal(before[key], after[key]) and before[key].dtype == after[key].dtype for key in before
    )


def test_a_file_is_converted_with_its_metadata_and_what_is_no_module(tmp_path: Path) -> None:
    adapter = random_lora(MINI, attention(MINI)[:4])
    tensors = written(adapter, MINI) | {"bundle_emb.cat.clip_l": torch.ones(1, 64)}
    metadata = {"ss_steps": "7", "sshs_model_hash": "0" * 64}
    save_file(tensors, tmp_path / "a.safetensors", metadata=metadata)
    out = tmp_path / "b.safetensors"
    report = convert_adapter(str(tmp_path / "a.safetensors"), Output(path=str(out), dialect="diffusers"))
    assert (report.modules, report.ranks, dict(report.left_out)) == (4, {2: 4}, {})
    assert metadata_of(out)["ss_steps"] == "7" and "sshs_model_hash" not in metadata_of(out)
    assert torch.equal(load_file(out)["bundle_emb.cat.clip_l"], torch.ones(1, 64))
    config = json.loads(metadata_of(out)["lora_adapter_metadata"])
    assert config["unet.r"] == 2 and config["unet.lora_alpha"] == 3
    with pytest.raises(ConflictError, match="already exists"):
        convert_adapter(str(tmp_path / "a.safetensors"), Output(path=str(out)))
    convert_adapter(str(tmp_path / "a.safetensors"), Output(path=str(out), overwrite=True))
    save_file(tensors | {"y": torch.ones(1)}, tmp_path / "odd.safetensors")
    other = Output(path=str(tmp_path / "c.safetensors"))
    with pytest.raises(InputError, match="1 keys match nothing, such as y: unknown name; --partial"):
        convert_adapter(str(tmp_path / "odd.safetensors"), other)
    assert not (tmp_path / "c.safetensors").exists()
    report = convert_adapter(str(tmp_path / "odd.safetensors"), other, partial=True)
    assert report.left_out == {"y": "unknown name"}


def test_pefts_folder_becomes_a_file(tmp_path: Path) -> None:
    adapter = random_lora(MINI, attention(MINI), alpha=None, rank=4)
    write_lora(tmp_path / "adapter_model.safetensors", adapter, MINI, "PEFT")
    (tmp_path / "adapter_config.json").write_text('{"r": 4, "lora_alpha": 8}')
    convert_adapter(str(tmp_path), Output(path=str(tmp_path / "a.safetensors")))
    changes = changes_of(tmp_path / "a.safetensors", MINI)
    for module, tensors in adapter.items():
        weight = changes[module.part, f"{module.name}.weight"]
        torch.testing.assert_close(weight, 2 * delta(tensors, tuple(weight.shape)))


@pytest.mark.parametrize("transfer", ["kept", "projection"])
@pytest.mark.parametrize(("made_for", "other"), [("mini-ssd-1b", "mini-sdxl"), ("mini-sdxl", "mini-ssd-1b")])
def test_the_teacher_is_the_model_that_a_file_was_made_for(
    made_for: str, other: str, transfer: str, tmp_path: Path
) -> None:
    layout = model_layout(made_for)
    path = write_lora(tmp_path / "a.safetensors", random_lora(layout, attention(layout)), layout)
    out = Output(path=str(tmp_path / "b.safetensors"))
    with pytest.raises(
        InputError,
        match=rf"a.safetensors changes the blocks of {made_for}, not those of the teacher, {other}",
    ):
        convert_adapter(str(path), out, to=made_for, teacher=other, transfer=transfer, partial=True)
    with pytest.raises(InputError, match=f"--to and --teacher are the same model, {made_for}"):
        convert_adapter(str(path), out, to=made_for, teacher=made_for, transfer=transfer)
    assert [*tmp_path.iterdir()] == [path]


def test_a_teacher_needs_a_move_and_a_move_takes_no_model(tmp_path: Path) -> None:
    path = str(write_lora(tmp_path / "a.safetensors", random_lora(MINI, attention(MINI)[:1]), MINI))
    out = Output(path=str(tmp_path / "b.safetensors"))
    with pytest.raises(InputError, match="give --to, too, or take --model"):
        convert_adapter(path, out, teacher="mini-sdxl")
    with pytest.raises(InputError, match="with --to, give the model as --teacher"):
        convert_adapter(path, out, model="mini-sdxl", to="mini-ssd-1b")


def test_the_metadata_of_an_adapter_for_another_model_name_that_model(tmp_path: Path) -> None:
    about = {
        "ss_base_model_version": "sdxl_base_v1-0", "ss_sd_model_name": "base.safetensors", "ss_steps": "7",
        "ss_sd_model_hash": "1234", "ss_new_sd_model_hash": "0" * 64,
    }  # fmt: skip
    path = str(write_lora(tmp_path / "a.safetensors", random_lora(MINI, attention(MINI)[:4]), MINI, **about))
    new = {"ss_base_model_version": "ssd-1b", "ss_sd_model_name": "mini-ssd-1b", "ss_steps": "7"}

    def written_by(make: Callable[..., object], **given: str) -> dict[str, str]:
        out = tmp_path / "b.safetensors"
        make(output=Output(path=str(out), overwrite=True), **given)
        return metadata_of(out)

    for found in (
        written_by(partial(convert_adapter, path), to="mini-ssd-1b"),
        written_by(partial(merge_adapters, [path]), model="mini-ssd-1b"),
    ):
        assert {key: found.get(key) for key in about} == {**dict.fromkeys(about), **new}
    kept = written_by(partial(convert_adapter, path))
    assert {key: kept.get(key) for key in about} == about


def test_a_move_to_a_smaller_model_is_what_a_merge_through_the_layer_map_is(tmp_path: Path) -> None:
    path = write_lora(tmp_path / "a.safetensors", random_lora(MINI, some(MINI)), MINI)
    student = model_layout("mini-ssd-1b")
    out = tmp_path / "b.safetensors"
    report = convert_adapter(str(path), Output(path=str(out)), to="mini-ssd-1b")
    assert report.through == "sdxl" and report.carried is not None and 0.3 < report.carried < 0.7
    assert {*report.left_out.values()} == {"its block is removed in ssd-1b"}
    assert match(open_adapter(out), student).through is None
    expected, found = changes_of(path, student), changes_of(out, student)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    by_name = convert_adapter(
        str(path), Output(path=str(out), overwrite=True), to="mini-ssd-1b", transfer="name", partial=True
    )
    assert by_name.through is None and changes_of(out, student).keys() == expected.keys()
    assert not all(torch.equal(changes_of(out, student)[key], expected[key]) for key in expected)
    back = tmp_path / "back.safetensors"
    report = convert_adapter(str(out), Output(path=str(back)), to="mini-sdxl")
    assert (report.through, report.carried, report.left_out) == ("ssd-1b", 1, {})
    again = convert_adapter(str(back), Output(path=str(tmp_path / "c.safetensors")), to="mini-ssd-1b")
    assert again.through == "sdxl" and again.carried == 1
    returned = changes_of(tmp_path / "c.safetensors", student)
    assert all(torch.equal(change, returned[key]) for key, change in changes_of(out, student).items())


def test_several_loras_become_one_of_their_ranks_together(tmp_path: Path) -> None:
    first = write_lora(
        tmp_path / "a.safetensors", random_lora(MINI, some(MINI), rank=2), MINI, ss_x="1", ss_y="2"
    )
    second = write_lora(
        tmp_path / "b.safetensors", random_lora(MINI, [*attention(MINI), RESNET], rank=3, seed=1), MINI,
        "diffusers", ss_x="1",
    )  # fmt: skip
    out = tmp_path / "c.safetensors"
    report = merge_adapters([f"{first}:0.5:2", f"{second}:-3"], Output(path=str(out)))
    alone = len([*attention(MINI, "text_encoder"), *attention(MINI, "text_encoder_2")])
    assert report.ranks == {2: alone, 5: len(attention(MINI)) + 1} and report.kept is None
    a, b, found = (changes_of(each, MINI) for each in (first, second, out))
    assert found.keys() == a.keys()
    for key, change in found.items():
        expected = (0.5 if key[0] == "unet" else 2.0) * a[key] - 3 * b.get(key, torch.tensor(0.0))
        torch.testing.assert_close(change, expected, rtol=1e-5, atol=1e-5)
    assert metadata_of(out)["ss_x"] == "1" and "ss_y" not in metadata_of(out)
    assert metadata_of(out)["ss_network_dim"] == "Dynamic"


def test_a_rank_keeps_the_largest_singular_values(tmp_path: Path) -> None:
    path = write_lora(tmp_path / "a.safetensors", random_lora(MINI, some(MINI), rank=6), MINI)
    out = tmp_path / "b.safetensors"
    report = merge_adapters([str(path)], Output(path=str(out)), cut=Cut(rank=2))
    assert report.ranks == {2: len(some(MINI))} and report.kept is not None and 0.3 < report.kept < 0.9
    before, after = changes_of(path, MINI), changes_of(out, MINI)
    kept = energy = 0.0
    for key, change in before.items():
        u, s, v = torch.linalg.svd(change.flatten(1), full_matrices=False)
        best = (u[:, :2] * s[:2] @ v[:2]).reshape(change.shape)
        torch.testing.assert_close(after[key], best, rtol=1e-3, atol=1e-3 * float(s[0]))
        kept, energy = kept + float(s[:2].square().sum()), energy + float(s.square().sum())
    assert report.kept == pytest.approx(kept / energy, rel=1e-4)


def test_rules_for_ranks() -> None:
    values = torch.tensor([4.0, 2.0, 2.0, 1.0, 0.5])
    energy = values.square().cumsum(0) / values.square().sum()  # 0.63, 0.79, 0.95, 0.99, 1
    for rule, value, rank in [
        ("energy", float(energy[1]), 2), ("energy", float(energy[1]) + 0.01, 3), ("energy", 1.0, 5),
        ("energy", 0.0, 1), ("sv_fro", float(energy[2]) ** 0.5, 3), ("sv_cumulative", 6 / 9.5, 2),
        ("sv_cumulative", 6.1 / 9.5, 3), ("sv_ratio", 2.5, 3), ("sv_ratio", 2.0, 1), ("sv_ratio", 100.0, 5),
    ]:  # fmt: skip
        assert Cut(**{rule: value}).of(values) == rank, (rule, value)
    assert Cut(energy=1.0, rank=2).of(values) == 2 and Cut(rank=9).of(values) == 5
    assert Cut(rank=3).of(values[:0]) == 0
    assert {*RULES} == {name for name in Cut.__dataclass_fields__ if name != "rank"}
    with pytest.raises(InputError, match="give a rank"):
        Cut()
    with pytest.raises(InputError, match=r"energy is 1\.5: it must be a number from 0 to 1"):
        Cut(energy=1.5)
    with pytest.raises(InputError, match="rank is 0: it must be a whole number from 1 to 4096"):
        Cut(rank=0)


@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (16, 16)])
def test_decompositions(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    found = decompose(matrix)
    expected = torch.linalg.svdvals(matrix.double())
    torch.testing.assert_close(found.values, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.up @ found.down, matrix.double())
    torch.testing.assert_close(found.up.norm(dim=0), found.down.norm(dim=1))
    for rank in (3, 50):  # by QR, and by the product
        up, down = torch.randn(shape[0], rank), torch.randn(rank, shape[1])
        low = decompose_product(up, down)
        assert len(low.values) == min(rank, *shape)
        torch.testing.assert_close(low.up @ low.down, up.double() @ down.double())
        torch.testing.assert_close(low.values, torch.linalg.svdvals(up.double() @ down.double())[:rank])
    assert decompose(torch.zeros(shape)).values.shape == (0,)


def test_other_kinds_become_loras(tmp_path: Path, tiny_model: Path) -> None:
    first, second = attention(DRAWABLE)[:2]
    out, channels = shapes("unet", DRAWABLE)[f"{first.name}.weight"]
    torch.manual_seed(0)
    adapter = {
        first: {
            f"hada_w{i}_{side}": torch.randn((out, 2) if side == "a" else (2, channels))
            for i in "12" for side in "ab"
        },
        second: random_lora(DRAWABLE, [second])[second] | {"dora": torch.rand(out, 1)},
        Module("unet", "conv_norm_out"): {"w_norm": torch.randn(8), "b_norm": torch.randn(8)},
        RESNET: random_lora(DRAWABLE, [RESNET])[RESNET] | {"diff_b": torch.randn(8)},
    }  # fmt: skip
    path = write_lora(tmp_path / "a.safetensors", adapter, DRAWABLE)
    result = Output(path=str(tmp_path / "b.safetensors"))
    with pytest.raises(InputError, match=r"(LoHa|DoRA), which cannot stand beside others: give --rank"):
        merge_adapters([str(path)], result, model=str(tiny_model))
    model = Model.find(str(tiny_model)).with_loras([lora_of(path)])
    with pytest.raises(InputError, match="whose change depends on the model's weights"):
        [*combined(model.changes, DRAWABLE, cut=Cut(energy=1.0), dtype=torch.float32)]
    report = merge_adapters([str(path)], result, model=str(tiny_model), cut=Cut(energy=1.0))
    assert report.kept == pytest.approx(1.0) and report.modules == 4
    names = [*model.changes["unet"]]
    resized = model.with_loras([lora_of(result.path)])
    given = {"device": "cpu", "dtype": torch.float32}
    found = dict(resized.tensors("unet", names, **given))
    for name, tensor in model.tensors("unet", names, **given):
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match=r"diffusers cannot read unet.*: Lo.A with .*; write kohya's"):
        convert_adapter(
            str(path), replace(result, overwrite=True, dialect="diffusers"), model=str(tiny_model)
        )


def test_extracting_what_was_baked(tmp_path: Path, tiny_model: Path) -> None:
    norm = Module("unet", "conv_norm_out")
    adapter = random_lora(DRAWABLE, some(DRAWABLE), rank=3) | {norm: {"w_norm": torch.randn(8)}}
    path = write_lora(tmp_path / "a.safetensors", adapter, DRAWABLE)
    folder = bake_adapters(str(tiny_model), [f"{path}:0.5:0.25"], str(tmp_path / "baked"))
    single = bake_adapters(folder, [], str(tmp_path / "baked.safetensors"))
    model = Model.find(str(tiny_model)).with_loras([lora_of(path, unet=0.5, text=0.25)])
    for baked in (Model.find(folder), Model.find(single)):
        for part in PARTS:
            expected, state = model.network(part).state_dict(), baked.network(part).state_dict()
            assert all(torch.equal(state[name], expected[name]) for name in expected)
    with pytest.raises(ConflictError):
        bake_adapters(str(tiny_model), [str(path)], folder)
    out = Output(path=str(tmp_path / "b.safetensors"), dtype="fp32")
    report = extract_adapter(str(tiny_model), folder, out, cut=Cut(rank=3), small=True)
    assert report.ranks == {3: len(some(DRAWABLE))} and report.kept == pytest.approx(1.0, abs=1e-6)
    assert metadata_of(Path(out.path))["ss_sd_model_name"] == tiny_model.name
    before, after = changes_of(path, DRAWABLE), changes_of(Path(out.path), DRAWABLE)
    assert before.keys() == after.keys()
    for key, change in before.items():
        scale = 0.5 if key[0] == "unet" else 0.25
        torch.testing.assert_close(after[key], scale * change, rtol=1e-3, atol=1e-4)
    plain = extract_adapter(
        str(tiny_model), folder, replace(out, overwrite=True), cut=Cut(energy=0.999), parts=["unet"]
    )
    assert plain.modules == len(attention(DRAWABLE)) + 1
    with pytest.raises(InputError, match="no module changes"):
        extract_adapter(folder, single, replace(out, overwrite=True), cut=Cut(rank=3))


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    path = write_lora(tmp_path / "a.safetensors", random_lora(MINI, attention(MINI)), MINI)
    out = Output(path=str(tmp_path / "b.safetensors"), dry_run=True)
    assert convert_adapter(str(path), out).bytes == merge_adapters([str(path)], out).bytes
    assert [each.name for each in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": "b.ckpt"}, r"b.ckpt: the name of an adapter must end in .safetensors"),
        ({"dialect": "koyha"}, "unknown dialect 'koyha': did you mean 'kohya'"),
        ({"dtype": "fp8"}, "unknown dtype 'fp8'"),
    ],
)
def test_outputs_that_are_refused(change: dict[str, str], message: str, tmp_path: Path) -> None:
    path = write_lora(tmp_path / "a.safetensors", random_lora(MINI, attention(MINI)[:1]), MINI)
    with pytest.raises(InputError, match=message):
        convert_adapter(str(path), Output(**{"path": "b.safetensors", **change}))


def test_numbers_that_overflow(tmp_path: Path) -> None:
    adapter = random_lora(MINI, attention(MINI)[:1])
    next(iter(adapter.values()))["up"] *= 1e6
    path = write_lora(tmp_path / "a.safetensors", adapter, MINI)
    out = Output(path=str(tmp_path / "b.safetensors"), dtype="fp16")
    for make in (lambda: convert_adapter(str(path), out), lambda: merge_adapters([str(path)], out)):
        with pytest.raises(InputError, match="up overflows in float16: take bf16 or fp32"):
            make()


def test_the_layout_of_a_file(tmp_path: Path) -> None:
    for name in ("mini-sdxl", "mini-ssd-1b"):
        layout = model_layout(name)
        path = write_lora(tmp_path / f"{name}.safetensors", random_lora(layout, attention(layout)), layout)
        assert own_layout(open_adapter(path)).name == name  # though all names of the smaller one are both's
    path = write_lora(tmp_path / "few.safetensors", random_lora(MINI, attention(MINI)[:1]), MINI)
    assert [each.name for each in own_layouts(open_adapter(path))] == ["mini-sdxl", "mini-ssd-1b"]
    assert {*DIALECTS} == {"kohya", "comfyui", "diffusers"}


def test_loras_of_different_models_are_merged_only_for_a_given_one(tmp_path: Path) -> None:
    student = model_layout("mini-ssd-1b")
    large, small, either = (
        str(write_lora(tmp_path / f"{name}.safetensors", random_lora(layout, chosen, rank=1), layout))
        for name, layout, chosen in (
            ("large", MINI, attention(MINI)), ("small", student, attention(student)),
            ("either", MINI, attention(MINI)[:2]),
        )
    )  # fmt: skip
    out = Output(path=str(tmp_path / "out.safetensors"), dry_run=True)
    for given in ([large, small], [either, large, small], [large, either, small]):
        with pytest.raises(
            InputError, match=r"large.* is for mini-sdxl, and .*small.* for mini-ssd-1b: give --model, the"
        ):
            merge_adapters(given, out)
    for given, assumed in (
        ([either, small], "mini-ssd-1b"),
        ([either], "mini-sdxl"),
        ([small], student.name),
    ):
        assert merge_adapters(given, out).assumed == assumed
    for file, model in product((large, small, either), (MINI, student)):
        assert not fit_advice([lora_of(file)], model, model.name)
    assert merge_adapters([large, small], out, model="mini-sdxl").modules == len(attention(MINI))
    report = merge_adapters([large, small], out, model="mini-ssd-1b")
    assert report.assumed is None and report.modules == len(attention(student))


def orthonormal(rows: int, columns: int) -> Tensor:
    return torch.linalg.qr(torch.randn(rows, columns, dtype=torch.float64))[0]


def test_a_projection_between_equal_weights_changes_nothing() -> None:
    torch.manual_seed(0)
    weight, up, down = torch.randn(12, 9), torch.randn(12, 2), torch.randn(2, 9)
    for share in (0.5, 0.9, 1.0):
        space = subspaces(weight, share)
        moved = project(up, down, space, space)
        torch.testing.assert_close(moved[0] @ moved[1], (up @ down).double())


def test_a_projection_takes_each_part_to_its_own_subspace() -> None:
    torch.manual_seed(0)
    source = Subspaces(orthonormal(12, 4), orthonormal(9, 3))
    target = Subspaces(orthonormal(12, 4), orthonormal(9, 3))
    inside_up, inside_down = (
        source.outputs @ torch.randn(4, 2).double(),
        (source.inputs @ torch.randn(3, 2).double()).T,
    )
    up, down = project(inside_up, inside_down, source, target)
    torch.testing.assert_close(target.outputs @ target.outputs.T @ up, up)
    torch.testing.assert_close(down @ target.inputs @ target.inputs.T, down)
    outside_up = torch.randn(12, 2).double()
    outside_up -= source.outputs @ (source.outputs.T @ outside_up)
    up, _ = project(outside_up, inside_down, source, target)
    torch.testing.assert_close(target.outputs.T @ up, torch.zeros(4, 2).double())
    assert up.norm() > 0.1  # the part in the null space is kept
    weight = source.outputs * torch.tensor([8.0, 4, 2, 1]).double() @ orthonormal(9, 4).T
    found = subspaces(weight, 0.95)  # 64 + 16 of 85 are 94 %
    torch.testing.assert_close(
        found.outputs @ found.outputs.T, source.outputs[:, :3] @ source.outputs[:, :3].T
    )


def test_a_lora_is_projected_on_the_miniatures(tmp_path: Path) -> None:
    path = write_lora(tmp_path / "a.safetensors", random_lora(MINI, attention(MINI)[:16]), MINI)
    out = tmp_path / "b.safetensors"
    with pytest.raises(InputError, match="needs both models"):
        convert_adapter(str(path), Output(path=str(out)), to="mini-ssd-1b", transfer="projection")
    with pytest.raises(InputError, match="leave out --teacher"):
        convert_adapter(
            str(path), Output(path=str(out)), to="mini-ssd-1b", transfer="name", teacher="mini-sdxl"
        )
    given = {"to": "mini-ssd-1b", "transfer": "projection", "teacher": "mini-sdxl"}
    report = convert_adapter(str(path), Output(path=str(out)), **given)
    kept = convert_adapter(str(path), Output(path=str(out), dry_run=True), to="mini-ssd-1b")
    assert (report.ranks, report.modules) == (kept.ranks, kept.modules)
    student = model_layout("mini-ssd-1b")
    plain, projected = changes_of(path, student), changes_of(out, student)
    layer_map = LayerMap.between(student.unet, MINI.unet).keys
    read = {name: Model.find(name).network("unet").state_dict() for name in ("mini-sdxl", "mini-ssd-1b")}
    for (_, name), change in projected.items():
        spaces = [
            subspaces(read["mini-sdxl"][layer_map[name]], 0.99),
            subspaces(read["mini-ssd-1b"][name], 0.99),
        ]
        (a_s, b_s), (a_t, b_t) = spaces
        identity = torch.eye(len(a_s)).double(), torch.eye(len(b_s)).double()
        p = [x @ x.T for x in (a_s, a_t, b_s, b_t)]
        left = p[1] @ p[0] + (identity[0] - p[1]) @ (identity[0] - p[0])
        right = p[2] @ p[3] + (identity[1] - p[2]) @ (identity[1] - p[3])
        expected = left @ plain["unet", name].double() @ right
        torch.testing.assert_close(change.double(), expected, rtol=1e-4, atol=1e-4)
