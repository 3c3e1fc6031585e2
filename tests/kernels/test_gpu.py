"""What only a GPU can show: streams, graphs, no waiting for the host, and no races between workers."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from families import randomise
from support import DEVICE, assert_pictures_close, bitwise, spread_network, test_patches

from ape_kernels import APEForward, PatchGrid, to_program
from ape_kernels.backends import get_backend
from ape_kernels.backends.protocol import Depths
from ape_kernels.packed import Wish, pack
from ape_kernels.run.images import run_image
from ape_kernels.run.patches import merge, split
from ape_sr.models import EDSR, SRVGGNetCompact

if DEVICE.type != "cuda":
    pytest.skip("needs a GPU: APE_TEST_DEVICE=cuda", allow_module_level=True)

FUSED = [
    pytest.param(name, marks=pytest.mark.skipif(bool(get_backend(name).unavailable()), reason=f"{name} cannot run"))
    for name in ("triton", "cuda")
]


@pytest.mark.parametrize("backend", FUSED)
class TestFused:
    def test_sanitizer(self, backend):
        """Small and complete: what compute-sanitizer runs."""
        model = spread_network()
        patches = test_patches(6)
        fast = APEForward(model, 0.5, backend=backend, dtype=torch.float16)
        oracle = APEForward(model, 0.5, backend="torch", dtype=torch.float16)
        assert_pictures_close(fast.forward_patches(patches)[0], oracle.forward_patches(patches)[0], 1e-2)

    def test_many_workers_give_the_same_bits_every_time(self, backend):
        """Few patches too, which triton spreads over the chip."""
        model = randomise(EDSR(4, 4, 64, 1)).to(DEVICE)
        fast = APEForward(model, 0.5, backend=backend, dtype=torch.float16)
        patches = test_patches(700, 48, 48)
        first = fast.forward_patches(patches)
        for _ in range(5):
            assert bitwise(fast.forward_patches(patches), first)
        for i in (0, 131, 132, 699):
            assert bitwise(fast.forward_patches(patches[i : i + 1]), [part[i : i + 1] for part in first])

    def test_run_stage_gives_the_same_places_every_time(self, backend):
        fast = APEForward(spread_network(), 0.5, backend=backend)
        packed = fast.packed
        features = torch.rand(500, 16, 12, 12, device=DEVICE)
        active = torch.arange(500, device=DEVICE).flip(0)
        run = lambda name, packed: torch.ops.ape_kernels.run_stage(  # noqa: E731
            features, active, packed.tensors, 1, 0.1, None, name
        )
        first = run(backend, packed)
        for _ in range(5):
            assert bitwise(run(backend, packed), first)
        expected = run("torch", APEForward(spread_network(), 0.5, backend="torch").packed)
        assert torch.equal(first[1], expected[1])

    def test_on_another_stream(self, backend):
        fast = APEForward(spread_network(), 0.5, backend=backend)
        patches = test_patches(40)
        expected = fast.forward_patches(patches)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            torch.cuda._sleep(10_000_000)  # what runs on the default stream would overtake this
            moved = patches.clone()
            got = fast.forward_patches(moved)
        stream.synchronize()
        assert bitwise(got, expected)

    @pytest.mark.parametrize("count", [2, 700], ids=["few", "many"])
    def test_captured_in_a_graph(self, backend, count):
        fast = APEForward(spread_network(), 0.5, backend=backend)
        patches = test_patches(count)
        fast.forward_patches(patches)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            got = fast.forward_patches(patches)
        patches.copy_(test_patches(count, seed=5))
        graph.replay()
        torch.cuda.synchronize()
        assert bitwise(got, fast.forward_patches(patches))

    def test_the_host_is_not_asked(self, backend):
        fast = APEForward(spread_network(), 0.5, backend=backend, patch_size=12)
        patches, image = test_patches(300), test_patches(1, 70, 90)
        calls = (lambda: fast.forward_patches(patches), lambda: fast(image))
        for call in calls:
            call()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for call in calls:
                call()
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def test_an_image_captured_in_a_graph(self, backend):
        fast = APEForward(spread_network(), 0.5, backend=backend, patch_size=12)
        image = test_patches(2, 70, 90)
        fast(image)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            got = fast(image)
        image.copy_(test_patches(2, 70, 90, seed=5))
        graph.replay()
        torch.cuda.synchronize()
        assert bitwise([got], [fast(image)])

    @pytest.mark.parametrize("blend", ["linear", "average"])
    @pytest.mark.parametrize("overlap", [0, 3], ids=lambda o: f"overlap={o}")
    def test_split_and_merge(self, backend, overlap, blend):
        """Against the torch backend, the whole picture and band by band."""
        grid = PatchGrid(61, 83, 16, overlap, 2, blend)
        image = test_patches(2, 61, 83)
        patches = split(grid, image, backend)
        assert torch.equal(patches, split(grid, image, "torch"))
        sr = torch.rand(len(patches), 3, 32, 32, device=DEVICE)
        expected = merge(grid, sr, 2, "torch")
        torch.testing.assert_close(merge(grid, sr, 2, backend), expected, atol=1e-6, rtol=0)
        one, kept = sr[: len(sr) // 2], sr[:0]
        for band in grid.bands(2):
            columns = grid.shape[1]
            kept = torch.cat([kept, one[band.first * columns : band.stop * columns]])
            merged = merge(grid, kept, 1, backend, band)
            torch.testing.assert_close(merged, expected[:1, :, band.begin : band.end], atol=1e-6, rtol=0)
            kept = kept[len(kept) - band.keep_rows * columns :]

    def test_host_memory_is_refused(self, backend):
        fast = APEForward(spread_network(), 0.5, backend=backend)
        packed = fast.packed
        with pytest.raises(ValueError, match=r"exit_at: expected int64 .* on cuda:0, got torch.int64 .* on cpu"):
            fast.forward_patches(test_patches(2), torch.tensor([0, 1]))
        with pytest.raises(ValueError, match=r"active: expected int64 .* on cuda:0, got torch.int64 .* on cpu"):
            torch.ops.ape_kernels.run_stage(
                torch.rand(2, 16, 4, 4, device=DEVICE), torch.tensor([0]), packed.tensors, 0, 0.5, None,
                backend,
            )  # fmt: skip


def _why_no_images(name):
    return get_backend(name).supports_images(to_program(EDSR(4, 4, 64, 1)), DEVICE, torch.float16)


IMAGES = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            bool(reason := get_backend(name).unavailable() or _why_no_images(name)), reason=f"{name}: {reason}"
        ),
    )
    for name in ("triton", "cuda")
]


@pytest.mark.parametrize("backend", IMAGES)
class TestImages:
    """Whole images on shared feature maps, by a plan."""

    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
    def test_sanitizer(self, backend, dtype):
        """Small and complete: what compute-sanitizer runs. Its windows end at the border and within cells."""
        model = randomise(EDSR(4, 2, 64, 1)).to(DEVICE)
        image = test_patches(1, 60, 85)
        depths = Depths(torch.tensor([[[-1, 0, 1, 1, 0, -1]] * 4], device=DEVICE), 16, 4)
        got = run_image(image, pack(model, Wish(backend, dtype)), depths)
        assert_pictures_close(got, run_image(image, pack(model, Wish("torch", dtype)), depths), 2e-2)

    @pytest.fixture
    def run(self, backend):
        """``run(image, exit_at)``, EDSR 4x64 in float16."""
        model = randomise(EDSR(4, 4, 64, 1)).to(DEVICE)
        packed = {name: pack(model, Wish(name, torch.float16)) for name in ("torch", backend)}
        return lambda image, exit_at, name=backend: run_image(image, packed[name], Depths(exit_at, 16, 4))

    @pytest.fixture
    def plan(self):
        return torch.randint(-1, 4, (2, 16, 23), generator=torch.Generator().manual_seed(0)).to(DEVICE)

    def test_is_the_oracle_and_the_same_bits_every_time(self, run, plan):
        image = test_patches(2, 250, 361)
        for exit_at in (None, plan):
            first = run(image, exit_at)
            assert_pictures_close(first, run(image, exit_at, "torch"), 2e-2)
            for _ in range(5):
                assert bitwise([run(image, exit_at)], [first])
            one = run(image[1:], None if exit_at is None else exit_at[1:])
            assert bitwise([one], [first[1:]])

    def test_on_another_stream(self, run, plan):
        image = test_patches(2, 250, 361)
        expected = run(image, plan)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            torch.cuda._sleep(10_000_000)  # what runs on the default stream would overtake this
            got = run(image.clone(), plan)
        stream.synchronize()
        assert bitwise([got], [expected])

    def test_threads_in_two_dtypes(self, backend):
        """A kernel's shared memory belongs to the device, whatever thread asks for it."""
        model = randomise(EDSR(4, 4, 64, 1)).to(DEVICE)
        image, depths = test_patches(1, 60, 85), Depths(None, 16, 4)
        packed = [pack(model, Wish(backend, dtype)) for dtype in (torch.float16, torch.float32)]
        expected = [run_image(image, each, depths) for each in packed]
        with ThreadPoolExecutor(2) as pool:
            often = list(pool.map(lambda i: run_image(image, packed[i % 2], depths), range(100)))
        torch.cuda.synchronize()
        assert all(bitwise([got], [expected[i % 2]]) for i, got in enumerate(often))

    def test_captured_in_a_graph_without_asking_the_host(self, run, plan):
        image = test_patches(2, 250, 361)
        run(image, plan)
        torch.cuda.set_sync_debug_mode("error")
        try:
            run(image, plan)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            got = run(image, plan)
        image.copy_(test_patches(2, 250, 361, seed=5))
        plan.copy_(plan.flip(1))
        graph.replay()
        torch.cuda.synchronize()
        assert bitwise([got], [run(image, plan)])


@pytest.mark.parametrize("backend", IMAGES)
def test_a_plan_of_a_fit_is_captured_in_a_graph(backend, fitted_model):
    """Planned by its fit, which is copied to the device once."""
    fast = APEForward(fitted_model, fidelity=45, backend=backend)
    image = test_patches(1, 150, 210)
    expected = fast(image)
    torch.cuda.set_sync_debug_mode("error")
    try:
        fast(image)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = fast(image)
    graph.replay()
    torch.cuda.synchronize()
    assert bitwise([got], [expected])


@pytest.mark.parametrize("network", [EDSR, SRVGGNetCompact])
def test_networks_are_recognised_with_tf32_as_pytorch_has_it(network):
    """conftest.py turns it off; users have it on for convolutions, where a network's own forward is coarser."""
    torch.backends.cudnn.allow_tf32 = True
    try:
        APEForward(randomise(network(4, 16, 64)).to(DEVICE), backend="torch")
    finally:
        torch.backends.cudnn.allow_tf32 = False


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_cuda_splits_and_merges_halves(dtype):
    if reason := get_backend("cuda").unavailable():
        pytest.skip(f"cuda: {reason}")
    grid = PatchGrid(61, 83, 16, 3, 2)
    image = test_patches(2, 61, 83).to(dtype)
    patches = split(grid, image, "cuda")
    assert torch.equal(patches, split(grid, image, "torch"))
    sr = torch.rand(len(patches), 3, 32, 32, device=DEVICE).to(dtype)
    torch.testing.assert_close(merge(grid, sr, 2, "cuda"), merge(grid, sr, 2, "torch"), atol=1e-2, rtol=0)
