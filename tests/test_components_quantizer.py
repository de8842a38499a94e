from typing import Any

import pytest
import torch

from abstractinator.components.bottlenecks import kinds
from abstractinator.components.bottlenecks.codebooks import EMACodebook
from abstractinator.components.bottlenecks.fsq import FSQ, FSQConfig
from abstractinator.components.bottlenecks.residual_vq import ResidualVQConfig
from abstractinator.components.bottlenecks.simvq import SimVQConfig
from abstractinator.components.bottlenecks.vector_quantizer import VectorQuantizer
from abstractinator.components.bottlenecks.vq import VQConfig

KINDS: dict[str, kinds.QuantizerConfig] = {
    "fsq": FSQConfig(fsq_levels=(4, 4)),
    "vq": VQConfig(codebook_size=16),
    "residual_vq": ResidualVQConfig(codebook_size=16),
    "simvq": SimVQConfig(codebook_size=16),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def quantizer_of(kind: str, width: int = 12) -> VectorQuantizer:
    torch.manual_seed(0)
    return kinds.quantizer_of(KINDS[kind], width)


@every_kind
def test_decode_gives_the_vectors_that_the_codes_came_with(kind: str) -> None:
    quantizer = quantizer_of(kind).eval()
    out = quantizer(torch.randn(50, 12))
    assert out.codes.shape == (50, 3)
    assert out.codes.dtype == torch.int64
    assert out.codes.min() >= 0
    assert out.codes.max() < quantizer.codebook_size
    assert len(out.codes.unique(dim=0)) > 5
    assert torch.equal(quantizer.decode(out.codes), out.vectors)
    parts = [quantizer.part(slot)[codes] for slot, codes in enumerate(out.codes.T)]
    torch.testing.assert_close(torch.stack(parts).sum(0), out.vectors)


@every_kind
def test_a_gradient_reaches_every_vector(kind: str) -> None:
    z = torch.randn(20, 12, requires_grad=True)
    out = quantizer_of(kind).eval()(z)
    (gradient,) = torch.autograd.grad((out.vectors * torch.randn_like(out.vectors)).sum(), z)
    assert (gradient.abs().sum(1) > 0).all()


@pytest.mark.parametrize("kind", ["vq", "residual_vq", "simvq"])
def test_the_gradient_passes_straight_through(kind: str) -> None:
    z, weight = torch.randn(20, 12, requires_grad=True), torch.randn(20, 12)
    (gradient,) = torch.autograd.grad((quantizer_of(kind).eval()(z).vectors * weight).sum(), z)
    torch.testing.assert_close(gradient, weight)


def test_the_map_of_simvq_learns_from_its_loss() -> None:
    quantizer = quantizer_of("simvq")
    quantizer(torch.randn(20, 12)).loss.backward()
    for book in quantizer.codebooks:
        assert book.map.weight.grad.abs().sum() > 0


@every_kind
def test_encode_agrees_with_forward_and_changes_nothing(kind: str) -> None:
    quantizer = quantizer_of(kind)
    z = torch.randn(64, 12)
    quantizer(z)
    before = {name: x.clone() for name, x in quantizer.state_dict().items()}
    codes = quantizer.encode(z)
    assert quantizer.training
    assert torch.equal(codes, quantizer.eval()(z).codes)
    for name, x in quantizer.state_dict().items():
        assert torch.equal(x, before[name]), name


@every_kind
@pytest.mark.parametrize("training", [True, False])
def test_no_vectors_give_no_codes_and_a_finite_loss(kind: str, training: bool) -> None:
    quantizer = quantizer_of(kind).train(training)
    z = torch.zeros(0, 12, requires_grad=True)
    out = quantizer(z)
    assert out.vectors.shape == (0, 12)
    assert out.codes.shape == (0, 3)
    assert torch.isfinite(out.loss)
    out.loss.backward()
    assert quantizer.decode(out.codes).shape == (0, 12)
    assert quantizer.encode(z).shape == (0, 3)


@every_kind
def test_everything_stays_in_full_precision_under_autocast(kind: str) -> None:
    quantizer = quantizer_of(kind).eval()
    z = torch.randn(30, 12)
    exact = quantizer(z)
    with torch.autocast("cpu", torch.bfloat16):
        out = quantizer(z)
        decoded = quantizer.decode(out.codes)
        half = quantizer(z.bfloat16())
    assert torch.equal(out.codes, exact.codes)
    assert out.vectors.dtype == decoded.dtype == half.vectors.dtype == out.loss.dtype == torch.float32
    assert torch.equal(out.vectors, exact.vectors)
    assert all(x.dtype == torch.float32 for x in quantizer.state_dict().values() if x.is_floating_point())


def test_one_step_of_the_codebook_is_the_formula() -> None:
    torch.manual_seed(0)
    decay = 0.9
    book = EMACodebook(8, 4, decay, revive_after=0)
    z = torch.randn(100, 4)
    book._start(z)
    old_codes, old_counts = book.codes.clone(), book.counts.clone()
    indices = torch.cdist(z, old_codes).argmin(1)
    returned, _ = book(z)
    assert torch.equal(returned, indices)
    for k in range(8):
        mine = z[indices == k]
        count = decay * old_counts[k] + (1 - decay) * len(mine)
        total = decay * old_counts[k] * old_codes[k] + (1 - decay) * mine.sum(0)
        torch.testing.assert_close(book.counts[k], count)
        torch.testing.assert_close(book.codes[k], total / count)


def test_a_full_running_mean_agrees_with_vector_quantize_pytorch() -> None:
    from vector_quantize_pytorch import VectorQuantize

    torch.manual_seed(0)
    theirs = VectorQuantize(dim=4, codebook_size=8, decay=0.8, threshold_ema_dead_code=0, eps=1e-12)
    mine = EMACodebook(8, 4, decay=0.8, revive_after=0)
    mine.started.fill_(True)
    codes = torch.randn(8, 4)
    inner = theirs._codebook
    inner.embed.data.copy_(codes[None])
    inner.embed_avg.data.copy_(codes[None])
    inner.cluster_size.data.fill_(1.0)
    mine.codes.copy_(codes)
    mine.sums.copy_(codes)
    for _ in range(5):
        z = torch.randn(64, 4)
        _, theirs_indices, _ = theirs(z[None])
        indices, _ = mine(z)
        assert torch.equal(indices, theirs_indices[0])
    torch.testing.assert_close(mine.codes, inner.embed[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("decay", [0.8, 0.99])
@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_the_first_step_does_not_blow_codes_up(decay: float, scale: float) -> None:
    torch.manual_seed(0)
    book = EMACodebook(32, 4, decay, revive_after=0.05)
    z = scale * torch.randn(200, 4)
    book(z)
    assert book.codes.abs().max() <= 1.1 * z.abs().max()


@pytest.mark.parametrize("config", [VQConfig, ResidualVQConfig])
def test_the_codebook_finds_the_clusters_and_is_used(config: type[VQConfig | ResidualVQConfig]) -> None:
    torch.manual_seed(0)
    centres = 5 * torch.randn(16, 8)
    quantizer: Any = kinds.quantizer_of(config(codes_per_segment=1, codebook_size=32, decay=0.9, revive_after=0.05), 8)
    for _ in range(150):
        z = centres[torch.randint(16, (256,))] + 0.1 * torch.randn(256, 8)
        out = quantizer(z)
    assert (out.vectors - z).norm(dim=1).mean() < 0.4  # 0.28 is the spread of a cluster
    assert len(out.codes.unique()) > 16
    book = quantizer.codebooks[0]
    assert torch.cdist(centres, book.codes).amin(1).max() < 0.5


def test_dead_codes_are_revived() -> None:
    torch.manual_seed(0)
    book = EMACodebook(16, 4, decay=0.9, revive_after=0.05)
    z = torch.randn(256, 4)
    book.codes.fill_(1e3)  # far from all the vectors
    book.codes[0] = 0.0
    book.sums.copy_(book.codes)
    book.started.fill_(True)
    used_at_first = len(book(z)[0].unique())
    for _ in range(80):
        indices, _ = book(z)
    assert used_at_first == 1
    assert len(indices.unique()) == 16


def test_an_evenly_used_code_is_not_called_dead() -> None:
    torch.manual_seed(0)
    z = 3 * torch.eye(8) + 0.0
    book = EMACodebook(8, 8, decay=0.5, revive_after=0.05)
    book.codes.copy_(z)
    book.sums.copy_(z)
    book.started.fill_(True)
    for _ in range(50):
        book(z)
    torch.testing.assert_close(book.codes, z)


@pytest.mark.parametrize(
    ("config", "wrong"),
    [
        (FSQConfig, {"codes_per_segment": 0}),
        (FSQConfig, {"fsq_levels": (1, 512)}),
        (FSQConfig, {"fsq_levels": ()}),
        (FSQConfig, {"fsq_levels": (-8, -8, 8)}),
        (VQConfig, {"codebook_size": 1}),
        (VQConfig, {"decay": 1.0}),
        (VQConfig, {"decay": -0.1}),
        (ResidualVQConfig, {"commitment": -1.0}),
        (VQConfig, {"revive_after": 1.0}),
        (ResidualVQConfig, {"revive_after": -0.1}),
        (SimVQConfig, {"commitment": -1.0}),
        (SimVQConfig, {"codes_per_segment": 0}),
    ],
    ids=str,
)
def test_a_wrong_configuration_is_refused(config: Any, wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        config(**wrong)


@pytest.mark.parametrize("levels", [(2,) * 8, (3, 5), (4, 2, 3), (7,)], ids=str)
def test_fsq_is_the_librarys_to_the_last_bit(levels: tuple[int, ...]) -> None:
    from vector_quantize_pytorch import FSQ as Reference

    torch.manual_seed(0)
    ours = FSQ(FSQConfig(codes_per_segment=2, fsq_levels=levels), 12)
    theirs = Reference(list(levels), num_codebooks=2, keep_num_codebooks_dim=True, preserve_symmetry=True)
    z = torch.randn(300, 12, requires_grad=True)
    out = ours(z)
    lattice, codes = theirs(ours.project_in(z)[None])
    assert out.lattice is not None
    assert torch.equal(out.codes, codes[0]) and torch.equal(out.lattice, lattice[0])
    assert torch.equal(ours.lattice, theirs.implicit_codebook)
    weights = torch.randn_like(out.lattice)
    gradients = [torch.autograd.grad((x * weights).sum(), z, retain_graph=True)[0] for x in (out.lattice, lattice[0])]
    assert torch.equal(*gradients)


def test_fsq_under_bf16_uses_all_of_its_codes() -> None:
    """In bf16 whole numbers above 256 lose their last bits."""
    quantizer = FSQ(FSQConfig(codes_per_segment=1, fsq_levels=(8, 8, 8)), 3)
    torch.nn.init.eye_(quantizer.project_in.weight)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        codes = quantizer((2 * torch.randn(60_000, 3)).bfloat16()).codes
    assert len(codes.unique()) == 512


def test_a_revived_code_is_not_overwritten_by_its_old_mean() -> None:
    torch.manual_seed(0)
    book, z = EMACodebook(4, 2, decay=0.9, revive_after=0.2), torch.randn(64, 2)
    book.codes[3], book.sums[3], book.counts[3] = 1e3, 1e-6, 1e-9
    book.started.fill_(True)
    book(z)
    assert book.codes[3].abs().max() <= z.abs().max()
    torch.testing.assert_close(book.sums[3] / book.counts[3], book.codes[3])
    book(z)
    assert book.codes[3].abs().max() <= z.abs().max()


@pytest.mark.parametrize("kind", ["vq", "simvq"])
def test_a_width_that_cannot_be_split_is_refused(kind: str) -> None:
    with pytest.raises(ValueError, match="divide"):
        quantizer_of(kind, width=10)
