"""What must hold of the whole model whatever its weights are."""

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import SHAPES, losses_of, mean_loss, padded, random_text, rows_of, tiny_config, tiny_level, tiny_model
from torch import Tensor, nn

from abstractinator.components.hierarchical.hierarchical_aelm import HierarchicalAELM
from abstractinator.components.hierarchical.hierarchical_autoencoder import AUTOENCODER, EVERYTHING
from abstractinator.components.hierarchical.hierarchy import ModelConfig
from abstractinator.components.packing import Packing
from abstractinator.components.token_head import targets_of
from abstractinator.components.tokens import BYTES, Tokens, pack_bytes
from abstractinator.components.transformer import ResidualMLP, TransformerBlock

BOS, EOS, PAD = BYTES.bos, BYTES.eos, BYTES.pad
MODELS: dict[str, HierarchicalAELM] = {}
every_shape = pytest.mark.parametrize("shape", SHAPES)
# Two documents in one row, a word that comes twice, and bytes that are no UTF-8.
ROW = [BOS, *b"so: the cat, the", EOS, BOS, *b"the \xff\x00cat sat", EOS]
texts = st.lists(st.binary(max_size=30), min_size=1, max_size=4)


def model_of(shape: str) -> HierarchicalAELM:
    """Made once; no test changes it."""
    if shape not in MODELS:
        MODELS[shape] = tiny_model(shape)
    return MODELS[shape]


def test_at_the_beginning_blocks_add_nothing() -> None:
    model = HierarchicalAELM(tiny_config("threshold-fixed"))
    packing, mlps, blocks = Packing.from_lengths(torch.tensor([3, 2])), 0, 0
    for module in model.modules():
        if isinstance(module, ResidualMLP):
            x, mlps = torch.randn(5, len(module.norm.gain)), mlps + 1
            assert torch.equal(module(x), x)
        elif isinstance(module, TransformerBlock):
            x, blocks = torch.randn(5, len(module.norm.gain)), blocks + 1
            assert torch.equal(module(x, packing), x)
    assert mlps > blocks > 0


def test_gradients_are_the_same_each_time_with_several_threads() -> None:
    """At the size of a real step: small sums are made by one thread anyway."""
    torch.manual_seed(0)
    model, threads, random_ = HierarchicalAELM(ModelConfig()).train(), torch.get_num_threads(), random.Random(0)
    text = " ".join(random_.choices(["the", "cat", "sat", "on", "some", "old", "mats", "and", "trees"], k=4000))
    rows, state = torch.tensor(list(text.encode()[:8192])).view(8, 1024), torch.get_rng_state()

    def gradients() -> list[Tensor]:
        torch.set_rng_state(state)
        model.zero_grad()
        mean_loss(model, rows).backward()
        return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]

    torch.set_num_threads(2)
    try:
        first = gradients()
        for _ in range(3):
            assert all(map(torch.equal, gradients(), first))
    finally:
        torch.set_num_threads(threads)


def log_probabilities(model: HierarchicalAELM, tokens: Tokens) -> Tensor:
    """(T, 257) of every byte and the end, before each token."""
    with torch.no_grad():
        hidden, _ = model.predict(tokens, model.compress(tokens))
        return model.byte_head.slot_logits(hidden, tokens.ids[:, :0]).log_softmax(-1)


def by_row(x: Tensor, packing: Packing) -> list[Tensor]:
    return list(x.split(packing.lengths.tolist()))


def changed_rows(row: list[int], *, special: bool) -> list[list[int]]:
    """The row with another token at each position in turn."""
    random_ = random.Random(0)
    out = []
    for t, old in enumerate(row):
        choices = [*b"a ,\xfe", *((BOS, EOS) if special else ())]
        new = old if old >= 256 and not special else random_.choice([i for i in choices if i != old])
        out.append([*row[:t], new, *row[t + 1 :]])
    return out


@every_shape
def test_a_token_changes_no_prediction_of_it_or_before_it(shape: str) -> None:
    model = model_of(shape)
    tokens = pack_bytes(padded([ROW, *changed_rows(ROW, special=True)]))
    original, *changed = by_row(log_probabilities(model, tokens), tokens.packing)
    for t, log_p in enumerate(changed):
        torch.testing.assert_close(log_p[: t + 1], original[: t + 1], atol=1e-4, rtol=0)
        if t + 1 < len(ROW):
            assert (log_p[t + 1] - original[t + 1]).abs().max() > 1e-3, "the token is not seen afterwards either"


@every_shape
def test_what_follows_changes_no_prediction(shape: str) -> None:
    model = model_of(shape)
    tokens = pack_bytes(padded([ROW[:n] for n in range(1, len(ROW) + 1)]))
    *prefixes, whole = by_row(log_probabilities(model, tokens), tokens.packing)
    for log_p in prefixes:
        torch.testing.assert_close(log_p, whole[: len(log_p)], atol=1e-4, rtol=0)


def two_part_terms(model: HierarchicalAELM, tokens: Tokens) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
    """Per level, and last for the highest codes, the terms of each row; and, per level, Segments.of_token."""
    with torch.no_grad():
        compressed = model.compress(tokens)
        lower = [tokens, *(c.codes for c in compressed)]
        terms = [
            by_row(level.expander.reconstruction_nll(c.codes.vectors, x, c.segments), c.codes.packing)
            for level, c, x in zip(model.levels, compressed, lower[:-1], strict=True)
        ]
        codes = compressed[-1].codes
        terms.append(by_row(model.top.nll(model.top(codes), codes), codes.packing))
        first = [c.codes.packing.offsets[x.packing.rows] for c, x in zip(compressed, lower, strict=False)]
        positions = [
            by_row(c.segments.of_token - f, x.packing) for c, f, x in zip(compressed, first, lower, strict=False)
        ]
    return terms, positions


@every_shape
def test_a_byte_changes_no_two_part_term_of_an_earlier_segment(shape: str) -> None:
    model = model_of(shape)
    tokens = pack_bytes(padded([ROW, *changed_rows(ROW, special=False)]))
    terms, positions = two_part_terms(model, tokens)
    seen = 0
    for t in range(len(ROW)):
        position = t
        for level in range(len(model.levels)):
            position = int(positions[level][0][position])  # the segment of byte t at this level
            torch.testing.assert_close(terms[level][t + 1][:position], terms[level][0][:position], atol=1e-4, rtol=0)
            seen += position
        torch.testing.assert_close(terms[-1][t + 1][:position], terms[-1][0][:position], atol=1e-4, rtol=0)
    assert seen > len(ROW)


@every_shape
def test_a_byte_changes_no_code_of_an_earlier_segment(shape: str) -> None:
    model = model_of(shape)
    tokens = pack_bytes(padded([ROW, *changed_rows(ROW, special=False)]))
    _, positions = two_part_terms(model, tokens)
    codes = [by_row(c.codes.ids, c.codes.packing) for c in model.compress(tokens)]
    moved = 0
    for t in range(len(ROW)):
        position = t
        for level in range(len(model.levels)):
            position = int(positions[level][0][position])
            original, changed = codes[level][0], codes[level][t + 1]
            assert torch.equal(changed[:position], original[:position])
            moved += not torch.equal(changed, original)
    assert moved > len(ROW) // 4, "hardly any byte changes a code at all"


def decoded_by_code(model: HierarchicalAELM, codes: Tokens) -> list[list[int]]:
    """The byte ids that each code becomes."""
    out = model.decompress(Tokens(codes.ids, codes.packing, codes.vocabulary))
    counts = torch.bincount(out.code, minlength=codes.packing.total)
    return [part.tolist() for part in out.tokens.ids[:, 0].split(counts.tolist())]


@every_shape
def test_a_code_changes_no_byte_decoded_from_another_one(shape: str) -> None:
    model = model_of(shape)
    codes = model.compress(pack_bytes(padded([ROW])))[-1].codes
    original = decoded_by_code(model, codes)
    random_, itself = random.Random(0), 0
    for s in range(codes.packing.total):
        for _ in range(3):
            ids = codes.ids.clone()
            ids[s] = torch.tensor(
                [random_.randrange(codes.vocabulary.codebook_size) for _ in range(codes.ids.shape[1])]
            )
            changed = decoded_by_code(model, Tokens(ids, codes.packing, codes.vocabulary))
            assert changed[:s] == original[:s] and changed[s + 1 :] == original[s + 1 :]
            itself += changed[s] != original[s]
    assert itself > codes.packing.total, "codes do not decide what is decoded"


@every_shape
def test_decompressing_a_row_does_not_depend_on_other_rows(shape: str) -> None:
    model = model_of(shape)
    rows = [ROW, [BOS, *b"quite another text"], ROW[::-1]]
    codes = model.compress(pack_bytes(padded(rows)))[-1].codes
    out = model.decompress(codes).tokens
    together = by_row(out.ids, out.packing)
    for row, got in zip(rows, together, strict=True):
        alone = model.decompress(model.compress(pack_bytes(padded([row])))[-1].codes).tokens
        assert torch.equal(got, alone.ids)


@every_shape
@settings(max_examples=15)
@given(texts=texts, extra=st.integers(0, 5))
def test_padding_and_other_rows_change_nothing(shape: str, texts: list[bytes], extra: int) -> None:
    model = model_of(shape)
    rows = nn.functional.pad(rows_of(texts), (0, extra), value=PAD)
    tokens = pack_bytes(torch.cat([rows, torch.full_like(rows[:1], PAD)]))
    with torch.no_grad():
        compressed = model.compress(tokens)
        hidden, _ = model.predict(tokens, compressed)
        for b, text in enumerate(texts):
            alone = pack_bytes(rows_of([text]))
            compressed_alone = model.compress(alone)
            hidden_alone, _ = model.predict(alone, compressed_alone)
            torch.testing.assert_close(by_row(hidden, tokens.packing)[b], hidden_alone, atol=1e-4, rtol=0)
            for c, c_alone in zip(compressed, compressed_alone, strict=True):
                assert torch.equal(by_row(c.codes.ids, c.codes.packing)[b], c_alone.codes.ids)


@every_shape
def test_all_continuations_of_a_text_share_its_probability(shape: str) -> None:
    model = model_of(shape)
    prefix = [BOS, *b"the cat, th"]
    tokens = pack_bytes(padded([prefix, *([*prefix, byte] for byte in [*range(256), EOS])]))
    with torch.no_grad():
        hidden, _ = model.predict(tokens, model.compress(tokens))
        nats = model.byte_head.nll(hidden, targets_of(tokens))
    of_prefix, *of_longer = (-x.sum() for x in by_row(nats, tokens.packing))
    torch.testing.assert_close(torch.stack(of_longer).logsumexp(0), of_prefix, atol=1e-3, rtol=0)


@every_shape
def test_the_losses_are_sums_of_nats(shape: str) -> None:
    model = model_of(shape)
    rows = padded([ROW, [BOS, *b"and more"]])
    tokens = pack_bytes(rows)
    with torch.no_grad():
        losses = losses_of(model, rows)
    predicted = [(t, i) for t, i in enumerate(tokens.ids[:, 0].tolist()) if i != BOS]
    log_p = log_probabilities(model, tokens)
    nats = -sum(log_p[t, min(i, 256)].item() for t, i in predicted)
    assert losses.weight.item() == sum(i < 256 for _, i in predicted)
    assert losses.predict is not None and losses.predict.item() == pytest.approx(nats, rel=1e-4)
    bits = losses.parts["bits_per_byte_exact"].value.item()
    assert bits == pytest.approx(nats / losses.weight.item() / math.log(2), rel=1e-4)

    terms, _ = two_part_terms(model, tokens)
    total = sum(x.sum().item() for level in terms for x in level)
    assert losses.two_part.item() == pytest.approx(total, rel=1e-4)


@every_shape
def test_reconstruction_alone_teaches_the_compressor(shape: str) -> None:
    model = tiny_model(shape).train()
    for i, level in enumerate(model.levels):
        model.zero_grad()
        losses_of(model, padded([ROW])).reconstruction[i].backward()
        compressor = level.compressor
        learns = {
            "embedding": compressor.embedding.slots[0].weight,
            "queries": compressor.pool.queries,
            "keys and values": compressor.pool.to_key_value.weight,
        }
        for name, parameter in compressor.quantizer.named_parameters():
            if "map" in name or "project" in name:
                learns[name] = parameter
        for name, parameter in learns.items():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


def test_the_codebook_of_simvq_learns_from_reconstruction() -> None:
    model = tiny_model("both").train()
    losses_of(model, padded([ROW])).reconstruction[0].backward()
    for book in model.levels[0].compressor.quantizer.codebooks:
        assert book.map.weight.grad.abs().sum() > 0


@every_shape
def test_special_tokens_are_restored_from_their_codes(shape: str) -> None:
    model = model_of(shape)
    rows = [[BOS, *b"ab cd", EOS], [BOS], [BOS, EOS], ROW]
    codes = model.compress(pack_bytes(padded(rows)))[-1].codes
    restored = model.decompress(codes).tokens
    for row, got in zip(rows, by_row(restored.ids[:, 0], restored.packing), strict=True):
        assert [i for i in got.tolist() if i >= 256] == [i for i in row if i >= 256]
        assert got[0] == BOS
        if row[-1] == EOS:
            assert got[-1] == EOS


@every_shape
@settings(max_examples=15)
@given(texts=texts)
def test_every_code_becomes_at_least_one_byte_and_no_more_than_it_may(shape: str, texts: list[bytes]) -> None:
    model = model_of(shape)
    compressed = model.compress(pack_bytes(rows_of(texts)))
    codes = compressed[-1].codes
    out = model.decompress(Tokens(codes.ids, codes.packing, codes.vocabulary))  # the vectors are not needed
    assert len(out.code) == out.tokens.packing.total
    assert torch.equal(out.code, out.code.sort().values)
    counts = torch.bincount(out.code, minlength=codes.packing.total)
    assert counts.min() >= 1
    assert counts.max() <= math.prod(level.expander.longest for level in model.levels)
    per_row = torch.zeros_like(codes.packing.lengths).index_add_(0, codes.packing.rows, counts)
    assert torch.equal(out.tokens.packing.lengths, per_row)
    assert out.tokens.ids.max() < PAD


@every_shape
@pytest.mark.parametrize(
    "rows",
    [
        [[BOS]],
        [[BOS, EOS]],
        [[7]],
        [[EOS]],
        [[]],
        [[], [BOS, 0, 255], []],
        [[BOS, EOS, BOS, EOS, BOS]],
        [[255] * 40, [BOS, *[0] * 40]],
    ],
    ids=str,
)
def test_odd_rows_have_finite_losses_and_gradients(shape: str, rows: list[list[int]]) -> None:
    model = tiny_model(shape).train()
    rows_ = nn.functional.pad(padded(rows), (0, 2), value=PAD)
    losses = losses_of(model, rows_)
    for value in (losses.total, losses.two_part, *(mean.value for mean in losses.parts.values())):
        assert torch.isfinite(value)
    (losses.total / losses.weight).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert all(torch.isfinite(x).all() for x in model.state_dict().values())


@every_shape
@settings(max_examples=15)
@given(rows=st.lists(st.lists(st.integers(0, 257), max_size=20), min_size=1, max_size=4))
def test_any_ids_have_finite_losses(shape: str, rows: list[list[int]]) -> None:
    with torch.no_grad():
        losses = losses_of(model_of(shape), padded(rows))
    assert torch.isfinite(losses.total)
    assert torch.isfinite(losses.two_part)


@pytest.mark.parametrize("shape", ["information", "threshold", "both", "increase", "threshold-fixed"])
def test_a_frozen_entropy_model_stands_still(shape: str) -> None:
    model = tiny_model(shape).train()
    compressor = model.levels[0].compressor
    assert compressor.entropy_model is not None
    rows = padded([ROW])
    mean_loss(model, rows).backward()
    assert all(p.grad is not None for p in compressor.entropy_model.parameters())

    compressor.freeze()
    model.zero_grad()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    losses = losses_of(model, rows)
    assert "level1/entropy_model_bits_per_byte" not in losses.parts
    losses.total.backward()
    optimizer.step()
    assert all(p.grad is None for p in compressor.entropy_model.parameters())
    after = model.state_dict()
    prefix = "levels.0.compressor.entropy_model."
    assert all(torch.equal(after[name], x) for name, x in before.items() if name.startswith(prefix))
    assert not torch.equal(
        after["levels.0.expander.head.to_logits.weight"], before["levels.0.expander.head.to_logits.weight"]
    )


def test_a_loaded_model_gives_the_same_losses() -> None:
    model, other = tiny_model("threshold-fixed", seed=0), tiny_model("threshold-fixed", seed=1)
    rows = padded([ROW])
    assert not torch.equal(mean_loss(model, rows), mean_loss(other, rows))
    other.load_state_dict(model.state_dict())
    assert torch.equal(mean_loss(model, rows), mean_loss(other, rows))


@every_shape
def test_losses_of_two_batches_add_up_to_those_of_both(shape: str) -> None:
    model = model_of(shape)
    rows = padded([ROW, [BOS, *b"and more"], ROW[::-1]])
    with torch.no_grad():
        whole, first, second = (losses_of(model, part) for part in (rows, rows[:1], rows[1:]))
    assert first.weight + second.weight == whole.weight
    for name in ("bits_per_byte_exact", "bits_per_byte_two_part", "level1/bytes_per_code"):
        added = first.parts[name] + second.parts[name]
        torch.testing.assert_close(added.value, whole.parts[name].value, atol=0, rtol=1e-4)


def test_a_phase_reports_what_it_trains_and_nothing_else() -> None:
    model = tiny_model("information").train()
    losses = losses_of(model, padded([ROW]), AUTOENCODER)
    assert losses.predict is None and losses.codes is None
    assert losses.parts and all(name.startswith("level1/") for name in losses.parts)
    losses.total.backward()
    assert all(p.grad is None for p in [*model.top.parameters(), *model.byte_head.parameters()])
    assert [phase.name for phase in model.phases()] == [AUTOENCODER, EVERYTHING]


@pytest.mark.parametrize("code", [16, 999, -1])
def test_a_code_that_does_not_exist_is_refused(code: int) -> None:
    model = model_of("fixed")
    codes = model.compress(pack_bytes(padded([[BOS, *b"some text"]])))[-1].codes
    ids = codes.ids.clone()
    ids[1, 0] = code
    with pytest.raises(ValueError, match=rf"code id {code} does not exist: the codebook has 16 codes, 0 to 15"):
        model.decompress(Tokens(ids, codes.packing, codes.vocabulary))


def test_a_model_without_levels_is_refused() -> None:
    with pytest.raises(ValueError, match="level"):
        ModelConfig(levels=())


@pytest.mark.parametrize("learning", [True, False])
def test_entropies_are_the_same_under_autocast(learning: bool) -> None:
    """Boundaries hang on their last bits, and generation cuts in fp32."""
    compressor = tiny_model("information").levels[0].compressor
    tokens = pack_bytes(rows_of([b"the cat sat on the mat"]))
    with torch.set_grad_enabled(learning):
        plain, _ = compressor.measure(tokens)
        with torch.autocast("cpu", torch.bfloat16):
            under, _ = compressor.measure(tokens)
    assert plain is not None and under is not None and under.dtype == torch.float32
    assert torch.equal(plain, under)


def test_whitespace_above_the_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match="whitespace"):
        HierarchicalAELM(ModelConfig(levels=(tiny_level("fixed", "fsq"), tiny_level("whitespace", "fsq"))))


@every_shape
def test_the_tiny_models_cut_text_in_different_places(shape: str) -> None:
    """The properties above would be empty if no segment had more than one token or all were cut at the bound."""
    model = model_of(shape)
    tokens = pack_bytes(rows_of([random_text(random.Random(i), 60) for i in range(4)]))
    for level, c in zip(model.levels, model.compress(tokens), strict=True):
        plain = c.segments.lengths[~c.codes.special]
        assert plain.float().mean() > 1.2
        if level.compressor.config.segmentation.rule != "fixed":
            assert len(plain.unique()) > 2
        assert len(c.codes.ids.unique(dim=0)) > 4


def test_texts_are_compressed_as_they_are() -> None:
    model = model_of("threshold-fixed")
    texts = [b"some text", b"", b"and \xff more"]
    packed = model.compress(pack_bytes(rows_of(texts)))[-1].codes
    assert torch.equal(model.compress(texts)[-1].codes.ids, packed.ids)
    alone = model.compress(texts[0])[-1].codes.ids
    assert torch.equal(alone, packed.ids[: len(alone)])


@pytest.mark.parametrize(
    "texts", ["text", [b"a", "text"], torch.zeros(2, 3), None], ids=lambda texts: type(texts).__name__
)
def test_texts_that_are_no_bytes_are_refused(texts: Any) -> None:
    with pytest.raises(ValueError, match=r"a text is bytes, several are a list of them; not (str|Tensor|NoneType)"):
        model_of("fixed").compress(texts)


def test_no_texts_have_no_codes() -> None:
    latents = model_of("fixed").encode([])
    assert latents.positions == 0 and model_of("fixed").decode(latents) == []
    assert model_of("fixed").decode(model_of("fixed").encode([b""])) == [b""]


def test_weights_in_half_precision_are_refused_in_a_sentence() -> None:
    model = tiny_model("fixed").bfloat16()
    codes = tiny_model("fixed").compress(b"text")[-1].codes
    uses: list[Callable[[], object]] = [
        lambda: model.compress(b"text"),
        lambda: model.decompress(codes),
        lambda: model.generate_bytes(b"text", max_new_bytes=2),
    ]
    for use in uses:
        with pytest.raises(ValueError, match=r"weights are torch\.bfloat16: keep them in float32"):
            use()


def test_codes_and_latents_restore_texts_that_a_model_has_learned() -> None:
    from tiny_reconstruction import trained

    model, rows = trained("fsq")
    texts = [bytes(row[1:60].tolist()) for row in rows[:3]]
    latents = model.encode(texts)
    pairs = zip(b"".join(texts), b"".join(model.decode(latents)), strict=False)
    assert sum(a == b for a, b in pairs) > 0.9 * sum(map(len, texts))
    assert latents.positions < sum(map(len, texts)) and latents.bits == latents.positions * 12
