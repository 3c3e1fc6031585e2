"""What only a GPU can show: streams, graphs, no waiting for the host, and no races between workers."""

import pytest
import torch
from families import randomise
from support import DEVICE, assert_pictures_close, bitwise, spread_network, test_patches

from ape_kernels import APEForward
from ape_kernels.backends import get_backend
from ape_sr.models import EDSR

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
        packed = fast._prepare().packed
        features = torch.rand(500, 16, 12, 12, device=DEVICE)
        active = torch.arange(500, device=DEVICE).flip(0)
        run = lambda name, packed: torch.ops.ape_kernels.run_stage(  # noqa: E731
            features, active, packed.table, packed.weights, 1, 0.1, None, name
        )
        first = run(backend, packed)
        for _ in range(5):
            assert bitwise(run(backend, packed), first)
        expected = run("torch", APEForward(spread_network(), 0.5, backend="torch")._prepare().packed)
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
        fast = APEForward(spread_network(), 0.5, backend=backend)
        patches = test_patches(300)
        fast.forward_patches(patches)
        torch.cuda.set_sync_debug_mode("error")
        try:
            fast.forward_patches(patches)
        finally:
            torch.cuda.set_sync_debug_mode("default")
