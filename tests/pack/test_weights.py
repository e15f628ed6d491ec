"""Protects what arrays mean as weights: packing, unpacking, parts that do not fit together."""

import dataclasses

import numpy as np
import pytest
import torch

from speedrun.config import QuantConfig
from speedrun.errors import FormatError, PackError
from speedrun.pack.container import Section, read_container, read_header, write_container
from speedrun.pack.report import report_pack
from speedrun.pack.weights import (
    LARGEST_FINE,
    Rows,
    pack_weights,
    round_weights,
    unpack_weights,
    write_weights,
)
from speedrun.quant.clip import search_clip
from speedrun.quant.low_rank import low_rank
from speedrun.quant.rows import dequantize_rows, quantize_rows

QUANT = QuantConfig(matrix_bits=5, embedding_bits=8, small_tensor_limit=64, codec="ans")


def network() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * 0.05

    return {
        "tok_emb.weight": normal(40, 16),
        "bigram.embed.weight": normal(30, 8),
        "blocks.0.mlp.fc.weight": normal(48, 16),
        "blocks.0.small.weight": normal(8, 8),
        "blocks.0.attn_scale": normal(100) + 1,
        "bank": normal(3, 20, 16),
        "gain": torch.tensor(1.5),
        "none": torch.zeros(0),
    }


def test_weights_come_back_as_the_grid_has_them() -> None:
    weights = network()
    meta, found = unpack_weights(pack_weights(weights, QUANT, {"run": {"seed": 1}}))
    assert meta == {"run": {"seed": 1}}
    assert {name: w.shape for name, w in found.items()} == {n: w.shape for n, w in weights.items()}
    assert all(weight.dtype == torch.float32 for weight in found.values())
    for name, bits in (("tok_emb.weight", 8), ("blocks.0.mlp.fc.weight", 5)):
        clip = search_clip(weights[name], bits=bits, candidates=QUANT.clip_candidates)
        expected = dequantize_rows(*quantize_rows(weights[name], clip, bits=bits))
        assert torch.equal(found[name], expected)
    for name in ("blocks.0.small.weight", "blocks.0.attn_scale", "gain"):
        assert torch.equal(found[name], weights[name].half().float())


def test_each_tensor_gets_the_bits_of_its_kind() -> None:
    rounded = round_weights(network(), QUANT)
    bits = {name: w.bits if isinstance(w, Rows) else 16 for name, w in rounded.items()}
    assert bits == {
        "tok_emb.weight": 8,
        "bigram.embed.weight": 8,
        "blocks.0.mlp.fc.weight": 5,
        "bank": 5,
        "blocks.0.small.weight": 16,
        "blocks.0.attn_scale": 16,
        "gain": 16,
        "none": 16,
    }


@pytest.mark.parametrize("codec", ["zstd", "lzma", "brotli", "ans", "best"])
def test_the_codec_does_not_change_the_weights(codec: str) -> None:
    rounded = round_weights(network(), QUANT)
    found = unpack_weights(write_weights(rounded, codec, {}))[1]
    expected = unpack_weights(write_weights(rounded, "raw", {}))[1]
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_order_layout_and_grad_do_not_change_the_bytes() -> None:
    weights = network()
    packed = pack_weights(weights, QUANT, {})
    shuffled = {name: torch.nn.Parameter(weights[name]) for name in reversed(weights)}
    shuffled["tok_emb.weight"] = weights["tok_emb.weight"].T.contiguous().T
    assert pack_weights(shuffled, QUANT, {}) == packed


def test_threads_do_not_change_the_bytes() -> None:
    weights, threads = network(), torch.get_num_threads()
    packed = pack_weights(weights, QUANT, {})
    torch.set_num_threads(1)
    try:
        assert pack_weights(weights, QUANT, {}) == packed
    finally:
        torch.set_num_threads(threads)


def test_packing_again_what_was_unpacked_changes_nothing() -> None:
    exact = QuantConfig(matrix_bits=5, small_tensor_limit=64, clip_candidates=(1.0,))
    once = unpack_weights(pack_weights(network(), exact, {}))[1]
    twice = unpack_weights(pack_weights(once, exact, {}))[1]
    assert all(torch.allclose(once[name], twice[name], rtol=1e-3, atol=1e-5) for name in once)


@pytest.mark.parametrize(
    ("weight", "text"),
    [
        (torch.ones(3, dtype=torch.int64), "'w' holds torch.int64"),
        (torch.tensor([1.0, float("nan")]), "'w'"),
        (torch.tensor([1e6]), "'w' holds 1,000,000, float16 ends at 65,504"),
        (torch.full((20, 20), float("inf")), "'w': 400 weights are NaN or infinite"),
    ],
)
def test_tensors_without_a_place_are_named(weight: torch.Tensor, text: str) -> None:
    with pytest.raises(PackError, match=text):
        pack_weights({"w": weight}, QUANT, {})


@pytest.mark.parametrize("codec", ["zstd", "ans"])
def test_vectors_of_integers_come_back_bit_for_bit(codec: str) -> None:
    generator = torch.Generator().manual_seed(3)
    streams = {
        "t.bytes": torch.arange(-128, 128).to(torch.int8),
        "t.words": torch.randint(-(2**15), 2**15, (999,), generator=generator).to(torch.int16),
        "t.empty": torch.zeros(0, dtype=torch.int16),
        "t.nothing": torch.zeros(0, dtype=torch.int8),
    }
    weights = {**streams, "w": torch.ones(3)}
    found = unpack_weights(pack_weights(weights, QuantConfig(codec=codec), {}))[1]
    assert found.keys() == weights.keys()
    for name, stream in streams.items():
        assert found[name].dtype == stream.dtype
        assert torch.equal(found[name], stream)


def test_a_matrix_of_integers_has_no_place() -> None:
    with pytest.raises(PackError, match=r"'w' holds torch\.int8"):
        pack_weights({"w": torch.ones(2, 2, dtype=torch.int8)}, QUANT, {})


def test_colons_in_names_are_refused() -> None:
    with pytest.raises(PackError, match="'a:codes'"):
        pack_weights({"a:codes": torch.ones(1)}, QUANT, {})


CODES, SCALES = np.ones((2, 3), np.int8), np.ones(2, np.float16)
LEFT, RIGHT = np.full((2, 1), 0.5, np.float16), np.ones((1, 3), np.float16)


def container(**arrays: np.ndarray) -> bytes:
    sections = [Section({name.replace("_", ":"): array}) for name, array in arrays.items()]
    return write_container(sections, {})


def test_a_low_rank_correction_is_added() -> None:
    found = unpack_weights(container(w_codes=CODES, w_scales=SCALES, w_left=LEFT, w_right=RIGHT))
    assert found[1]["w"].tolist() == [[1.5] * 3] * 2


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"w_codes": CODES}, "codes with scales"),
        ({"w_scales": SCALES}, "codes with scales"),
        ({"w": SCALES, "w_codes": CODES, "w_scales": SCALES}, "codes with scales"),
        ({"w_codes": CODES, "w_scales": np.ones(3, np.float16)}, "one scale per row"),
        ({"w_codes": CODES[0], "w_scales": SCALES[0]}, "one scale per row"),
        ({"w_codes": CODES, "w_scales": SCALES * np.float16("nan")}, "not finite float16"),
        ({"w_codes": CODES, "w_scales": -SCALES}, "scale of zero or below"),
        ({"w_codes": CODES * np.int8(-128), "w_scales": SCALES}, "code of -128"),
        ({"w": np.array([np.inf], np.float16)}, "not finite float16"),
        ({"w": CODES}, "not finite float16"),
        ({"w": np.ones(2, np.float64)}, "is float64"),
        ({"w": SCALES, "w_other": SCALES}, r"stray parts \['other'\]"),
        ({"w_codes": CODES, "w_scales": SCALES, "w_left": LEFT}, "stray parts left or right"),
        (
            {"w_codes": CODES, "w_scales": SCALES, "w_left": LEFT, "w_right": LEFT},
            "correction .* misfits",
        ),
    ],
)
def test_parts_that_do_not_belong_together_are_named(
    arrays: dict[str, np.ndarray], text: str
) -> None:
    with pytest.raises(FormatError, match=text):
        unpack_weights(container(**arrays))


def test_widths_have_sections_of_their_own() -> None:
    quant = dataclasses.replace(QUANT, codec="zstd")
    header = read_header(pack_weights(network(), quant, {}))
    assert [array[3] for array in header.arrays if array[0].startswith("tok_emb")] == [1, 2]
    assert len(header.sections) == 4


def test_the_range_coder_takes_each_width_by_itself() -> None:
    header = read_header(pack_weights(network(), QUANT, {}))
    found = {array[0]: array[3] for array in header.arrays if array[0].endswith(":codes")}
    assert header.sections[found["blocks.0.mlp.fc.weight:codes"]][0] == "ans"
    assert found["tok_emb.weight:codes"] not in (
        own := [v for k, v in found.items() if "emb" not in k]
    )
    assert len(set(own)) == 1


def test_a_tensor_that_repeats_itself_gets_the_codec_that_sees_it() -> None:
    weights = network()
    weights["blocks.0.mlp.proj.weight"] = torch.arange(40.0).repeat(200).view(80, 100)
    quant = dataclasses.replace(QUANT, codec="best")
    packed = pack_weights(weights, quant, {})
    header = read_header(packed)
    sections = {name: section for name, _, _, section in header.arrays}
    own = sections["blocks.0.mlp.proj.weight:codes"]
    assert header.sections[own][0] not in ("ans", "raw")
    assert list(sections.values()).count(own) == 1
    assert sections["bank:codes"] != own
    assert len(packed) < len(pack_weights(weights, QUANT, {})) - 1_000
    assert torch.equal(
        unpack_weights(packed)[1]["blocks.0.mlp.proj.weight"],
        unpack_weights(pack_weights(weights, QUANT, {}))[1]["blocks.0.mlp.proj.weight"],
    )


def test_column_scales_and_corrections_come_back() -> None:
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(-20, 21, (30, 12), generator=generator).to(torch.int8)
    scales, columns = torch.full((30,), 0.5).half(), torch.linspace(0.5, 2, 12).half()
    factors = low_rank(torch.randn(30, 12, generator=generator), 2)
    rows = Rows(codes, scales, 6, columns, factors._asdict())
    _, found = unpack_weights(write_weights({"w": rows}, "best", {}))
    expected = codes.float() * 0.5 * columns.float() + factors.product()
    assert torch.allclose(found["w"], expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(found["w"], rows.weights())


def test_fine_codes_take_a_second_plane() -> None:
    codes = torch.arange(-LARGEST_FINE, LARGEST_FINE + 2).clamp(max=LARGEST_FINE)
    codes = codes.to(torch.int16).view(3, -1)
    rows = Rows(codes, torch.tensor([0.5, 0.25, 2.0]).half(), 12)
    data = write_weights({"w": rows}, "best", {})
    _, arrays = read_container(data)
    assert int(arrays["w:codes"].min()) == -127 and int(arrays["w:codes"].max()) == 127
    assert set(arrays["w:fine"].ravel()) == set(range(-8, 8))
    found = unpack_weights(data)[1]["w"]
    assert torch.equal(found, codes.float() * rows.scales.float()[:, None])
    assert torch.equal(found, rows.weights())
    (report,) = report_pack(data, {"w": found}).tensors
    assert report.bits == 12 and report.clip == 0.5 * LARGEST_FINE and report.relative_error == 0


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("fine", np.zeros((30, 11), np.int8), "fine codes"),
        ("fine", np.full((30, 12), 8, np.int8), "outside -8 to 7"),
        ("fine", np.full((30, 12), -9, np.int8), "outside -8 to 7"),
        ("fine", np.zeros((30, 12), np.float16), "need one int8 for each"),
        ("columns", np.ones(11, np.float16), "column scales"),
        ("columns", np.zeros(12, np.float16), "column scales"),
        ("columns", np.full(12, np.inf, np.float16), "not finite"),
        ("columns", np.ones(12, np.int8), "not finite float16"),
        ("left_scales", np.ones(3, np.float16), "2 components"),
        ("left", np.ones((29, 2), np.int8), "misfits"),
        ("right", np.ones((12, 2), np.int8), "12 components"),
        ("right_scales", np.full(2, np.nan, np.float16), "not finite"),
    ],
)
def test_parts_that_contradict_each_other_are_named(part, value, message) -> None:
    parts = {
        "codes": np.full((30, 12), 127, np.int8),
        "scales": np.ones(30, np.float16),
        "columns": np.full(12, 6e4, np.float16),
        "left": np.ones((30, 2), np.int8),
        "left_scales": np.full(2, 6e4, np.float16),
        "right": np.ones((2, 12), np.int8),
        "right_scales": np.ones(2, np.float16),
    } | {part: value}
    sections: dict[int, dict[str, np.ndarray]] = {}
    for name, array in parts.items():
        sections.setdefault(array.itemsize, {})[f"w:{name}"] = array
    data = write_container([Section(arrays) for arrays in sections.values()], {})
    with pytest.raises(FormatError, match=message):
        unpack_weights(data)


def test_report_accounts_for_every_byte() -> None:
    weights = network()
    packed = pack_weights(weights, QUANT, {})
    report = report_pack(packed, weights)
    shares = sum(tensor.packed_bytes for tensor in report.tensors)
    assert shares + report.overhead_bytes == pytest.approx(len(packed))
    rows = {tensor.name: tensor for tensor in report.tensors}
    assert (rows["tok_emb.weight"].bits, rows["bank"].bits, rows["gain"].bits) == (8, 5, 16)
    assert rows["tok_emb.weight"].relative_error < rows["bank"].relative_error < 0.01
    codes = read_container(packed)[1]["bank:codes"]
    assert rows["bank"].num_weights == codes.size
