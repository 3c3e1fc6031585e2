"""APEForward: the module users hold."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ape_kernels.autocast import autocast_dtype
from ape_kernels.backends import BackendUnavailable, get_backend
from ape_kernels.backends.protocol import Exits
from ape_kernels.check import check_program
from ape_kernels.exits import all_exits, has_added_exits
from ape_kernels.geometry import PATCH_SIZE, Blend, check_blend, check_patch_size
from ape_kernels.inputs import check_stages, checked_pixels, expect
from ape_kernels.packed import DTYPES, Packed, PackedModel, Wish
from ape_kernels.plan.fit import ExitFit
from ape_kernels.plan.plan import Plan, check_budget, check_fit
from ape_kernels.plan.work import Work
from ape_kernels.policy import Fidelity, Policy, exit_boundary
from ape_kernels.program import PatchProgram
from ape_kernels.progress import Progress
from ape_kernels.report import Report
from ape_kernels.run.patches import Cut, run_patches
from ape_kernels.run.runner import Runner
from ape_kernels.sharing import why_not_shared
from ape_kernels.wrappers import Wrapper, device_of, is_replica, unwrapped

Context = Literal["model", "patch"]
CONTEXTS = ("model", "patch")

WHOLE = Cut(1 << 30, 0, "linear")  # an image is one patch

# a picture; with its report; in training mode pictures and predictions of all exits
_Upscaled = Tensor | tuple[Tensor, Report] | tuple[list[Tensor], list[Tensor]]


class APEForward(Wrapper):
    """Runs a super-resolution network fast: whole images, and patches that leave when more layers would bring little.

    Inference only. The wrapped model is not changed; its weights may be, and are picked up at the next call (see
    `refresh`). While the wrapped model is in training mode, a call is handed on to it. Its public attributes can be
    read here as well.

    An image runs in one of two ways. With the context "model", its patches share feature maps, and the picture is
    ``model(image)`` to rounding. How far each cell of the image runs can be given to the call. With the context
    "patch", the paper's way (APE, ECCV 2022, section 3), overlapping patches run on their own, each leaves as soon as
    the regressor predicts that the next layers bring little, and the results are blended.

    model: a network one of the adapters recognises, with or without exits; also in `nn.DataParallel`,
        `DistributedDataParallel` or a descriptor of spandrel.
    threshold: incremental capacity below which a patch leaves, in [0, 1]; 0 never early, 1 at the first exit. None
        takes the model's own `exit_threshold` (as 1 minus it; 0 where it has none) for `forward_patches`, and runs
        images as `fidelity` says.
    min_gain_db: the same said in dB a stage must bring.
    fidelity: PSNR in dB, from 20 to 80 and over all channels, that each cell of 48 low-resolution pixels is to have to
        the model's own picture. Planned from the image before the network runs, for a model that carries a fit
        (`fit_exits`). None is full depth; "auto" is what the fit says, and full depth without a fit.
    budget: share of full depth's work that each image may take: the highest fidelity whose work fits. Needs a fit too.
        Give at most one of threshold, min_gain_db, fidelity and budget.
    context: "model" or "patch". None takes "patch" for a threshold above 0 and for networks that read the whole patch
        at once (channel attention, windows of a transformer); else "model". Such networks share no maps: with "model"
        the whole image is one patch, as exact, to full depth, and it takes memory as it is large.
    cell: sides of the cells that `forward` takes depths for, low-resolution pixels.
    patch_size, overlap: low-resolution pixels; where a network folds squares of pixels into channels first
        (RRDBNet at scales 1 and 2), rounded to whole squares. blend: how overlaps are merged, "linear" or "average".
    backend: "auto" or a name listed by ``python -m ape_kernels``; "auto" honours APE_BACKEND and, on
        a GPU, takes the fastest backend that a verification there found right (APE_AUTO; docs/auto.md).
    dtype: of the matrix multiplications, float32, float16 or bfloat16. None takes the model's, and under autocast that
        of autocast; for float64, and for float16 on a CPU, which has no kernels for them, it takes float32.

    Raises TypeError or ValueError for arguments outside these, NotRecognised for a network no adapter
    knows or whose forward does not do what its layers say, BackendUnavailable (at the first call) for a
    named backend that cannot run.

    ``torch.compile`` (fullgraph) and ``torch.export`` see one operation, and before it those that make a plan, where
    there is one. A traced call uses the weights as they were when this module was made, loaded, moved or last set to
    evaluation mode.
    """

    def __init__(
        self,
        model: nn.Module,
        threshold: float | None = None,
        *,
        min_gain_db: float | None = None,
        fidelity: Fidelity = "auto",
        budget: float | None = None,
        context: Context | None = None,
        cell: int = PATCH_SIZE,
        patch_size: int = PATCH_SIZE,
        overlap: int = 2,
        blend: Blend = "linear",
        backend: str = "auto",
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        model = unwrapped(model)
        programs = PackedModel(model)
        program = programs.program()
        check_patch_size(patch_size, overlap)
        check_blend(blend)
        if backend != "auto":
            get_backend(backend)
        if dtype is not None and dtype not in DTYPES:
            raise ValueError(f"dtype: expected None, {', '.join(map(str, DTYPES))}, got {dtype!r}")
        policy = Policy.of(threshold, min_gain_db, fidelity, budget)
        if context is not None and context not in CONTEXTS:
            raise ValueError(f"context: expected one of {', '.join(CONTEXTS)}, got {context!r}")
        if not isinstance(cell, int) or cell < 1 or cell % program.fold:
            raise ValueError(f"cell: expected a multiple of {program.fold} pixels, at least 1, got {cell!r}")
        self._gives_three = check_program(model, program, dtype)
        self.model = model
        self.cell = cell
        self.patch_size, self.overlap = patch_size, overlap
        self.blend: Blend = blend
        self.backend, self.dtype = backend, dtype
        self._programs = programs
        self._not_shared = why_not_shared(program)  # of a network's layers, which stay when its weights change
        if policy.threshold is None:
            _own_threshold(program)  # raises for one that is none
        self._context: Context | None = None
        self._policy = self._checked(policy, context)
        self._context = context
        self._pack_ahead()
        self.training = model.training  # ours alone: the model's modules keep their modes

    @property
    def threshold(self) -> float:
        """Incremental capacity below which a patch leaves.

        May be set between calls, which ends a fidelity or budget; None for the model's own and images as the fit says.
        """
        return self._threshold(self.program)

    @threshold.setter
    def threshold(self, value: float | None) -> None:
        self._set_policy(Policy.of(value, None, "auto", None))

    def _threshold(self, program: PatchProgram) -> float:
        given = self._policy.threshold
        return _own_threshold(program) if given is None else given

    @property
    def fidelity(self) -> float | None:
        """PSNR in dB to full depth that is asked of each cell of an image.

        None for full depth, and with a threshold or a budget. May be set between calls, which ends a threshold or
        budget: 20 to 80, "auto" for the fit's own, None for full depth.
        """
        if self._policy.fidelity != "auto":
            return self._policy.fidelity
        decided = self._policy.threshold is not None or self._policy.budget is not None or not self._shares_maps
        return None if decided or self.fit is None else self.fit.default

    @fidelity.setter
    def fidelity(self, value: Fidelity) -> None:
        self._set_policy(Policy.of(None, None, value, None))

    @property
    def budget(self) -> float | None:
        """Share of full depth's work that each image may take, None for no bound.

        May be set between calls, which ends a threshold or fidelity.
        """
        return self._policy.budget

    @budget.setter
    def budget(self, value: float | None) -> None:
        self._set_policy(Policy.of(None, None, "auto", value))

    @property
    def fit(self) -> ExitFit | None:
        """What `fit_exits` has learned of the wrapped model, which carries it as `exit_fit`; None without."""
        return getattr(self.model, "exit_fit", None)

    @property
    def context(self) -> Context:
        """How images run, "model" or "patch", as given or as it follows from the other settings."""
        if self._context is not None:
            return self._context
        return "patch" if self._policy.threshold or self._not_shared is not None else "model"

    def _set_policy(self, policy: Policy) -> None:
        self._policy = self._checked(policy, self._context)
        self._pack_ahead()  # it may have changed how images run

    def _checked(self, policy: Policy, context: Context | None) -> Policy:
        if context == "model" and policy.threshold:
            raise ValueError("context: expected 'patch' with a threshold above 0, got 'model'")
        if (name := policy.needs_fit) is None:
            return policy
        if self._not_shared is not None:
            raise ValueError(f"{name}: expected None for this network: {self._not_shared}")
        if context == "patch":
            raise ValueError(f"{name}: expected None with the context 'patch', whose patches decide for themselves")
        if self.fit is None:
            raise ValueError(
                f"{name}: expected a model that carries a fit, as ape_kernels.fit_exits(model, images) and "
                "`ape-sr fit` make it; got one without"
            )
        check_fit(self.fit, self.program)
        if policy.budget is not None:
            check_budget(policy.budget, Work.of(self.program, self.fit.tones is not None))
        return policy

    @property
    def program(self) -> PatchProgram:
        """The patch program of the model as it is now."""
        return self._programs.program()

    @property
    def packed(self) -> Packed:
        """The program of the model as it is now, packed for the backend that runs patches."""
        return self._packed("patch")

    @property
    def packed_for_images(self) -> Packed:
        """The program of the model as it is now, packed for the backend that runs images as the settings say."""
        return self._packed(self.context)

    def _wish(self, context: Context) -> Wish:
        dtype = self.dtype or autocast_dtype(self._device)
        if context == "model" and self._not_shared is None:
            return Wish(self.backend, dtype, self.cell, images=True)
        return Wish(self.backend, dtype, self.patch_size)

    @property
    def _shares_maps(self) -> bool:
        return self.context == "model" and self._not_shared is None

    def _packed(self, context: Context) -> Packed:
        """The program as it runs now, on the device of this module, which may be a replica of `nn.DataParallel`."""
        return self._programs.get(self._wish(context), self._device if is_replica(self.model) else None)

    @property
    def scale(self) -> int:
        """Upscaling factor of the model."""
        return self.program.scale

    def forward(
        self,
        x: Tensor,
        return_report: bool = False,
        exit_at: Tensor | None = None,
        plan: Plan | None = None,
        progress: Progress | None = None,
    ) -> _Upscaled:
        """Upscale whole images.

        x: float ``[B, C, H, W]`` of any size and memory format, on the model's device, finite. An image ``[C, H, W]``
            is taken as a batch of one, and its picture has as many dimensions.
        exit_at: int64 ``[B, rows, columns]``, with the context "model" alone: how far each cell of ``cell * cell``
            pixels runs, the last of a row or column cut off by the edge. -1 interpolates (bicubic) and does not run
            the network; 0 to stages - 1 is the stage after which the cell leaves, and the last is full depth.
        plan: the same as `plan` made it, for images of this size. Without exit_at and plan, the settings decide.
        progress: called now and then with the share that is done, from 0 to 1, by the thread of the caller. What it
            raises ends the call, as an interruption does.
        Returns the picture ``[B, C, s * H, s * W]`` in the dtype of `x`, or that of autocast under it, with
        `return_report` also a `Report`. In training mode returns what ``model(x)`` returns, or `all_exits` where
        `add_exits` made them.

        Raises TypeError for a wrong dtype, ValueError for a wrong shape or device, NaN or infinity. Without
        `return_report`, a batch of three is refused for networks that return three things themselves: code written for
        those would take the pictures apart (`PatchForward`).
        """
        if self.model.training:
            if return_report or exit_at is not None or plan is not None:
                raise ValueError(
                    "model: expected in evaluation mode for a report, exit_at or a plan; call eval() first"
                )
            return all_exits(self.model, x) if has_added_exits(self.model) else self.model(x)
        if self._gives_three and not return_report and len(x) == 3:
            raise ValueError(
                "x: expected another batch than three images, as this network itself returns (picture, exit index, "
                "prediction); ape_kernels.PatchForward returns those, and return_report=True a report"
            )
        images = x[None] if isinstance(x, Tensor) and x.ndim == 3 else x
        if torch.compiler.is_compiling():
            runner = self._runner(self._programs.latest(self._shares_maps))
            pixels, dtype = images.detach().float(), images.dtype
        else:
            runner = self.runner()
            weights = runner.packed.weights
            pixels = checked_pixels(images, "x", runner.packed.program, weights.device)
            dtype = images.dtype
            dtype = dtype if dtype == torch.float64 else autocast_dtype(images.device) or dtype
        sr, report = runner.run(pixels, exit_at, plan, report=return_report, progress=progress)
        sr = sr.to(dtype) if images is x else sr[0].to(dtype)
        return sr if report is None else (sr, report)

    def runner(self) -> Runner:
        """What a call runs images with, as the settings and the model are now."""
        return self._runner(self.packed_for_images)

    def _runner(self, packed: Packed) -> Runner:
        cut = WHOLE if self.context == "model" else Cut(self.patch_size, self.overlap, self.blend)
        runner = Runner(
            packed,
            None if self._shares_maps else cut,
            self._not_shared or "with the context 'patch' they decide for themselves",
            Exits(exit_boundary(self._policy.threshold or 0.0)),
            self.cell,
            self.fit,
            self.fidelity,
            self._policy.budget,
        )
        if runner.plans:
            self._check_fitted()
        return runner

    def _check_fitted(self) -> None:
        """A fit of other weights promises nothing. Of traces and replicas it cannot be told."""
        if self.fit is None or torch.compiler.is_compiling() or is_replica(self.model):
            return
        if self._programs.fingerprint() not in ("", self.fit.fingerprint):
            raise ValueError(
                "exit_fit: expected one of the model's weights as they are now, got one of others; fit them again "
                "(ape_kernels.fit_exits), or take it away (model.exit_fit = None)"
            )

    def plan(self, image: Tensor) -> Plan:
        """How far each cell of an image is to run, as the fidelity or the budget says, before anything runs.

        image: as `forward` takes it. Raises ValueError where neither applies, and for a model without a fit.
        """
        packed = self._packed("model")
        image = image[None] if isinstance(image, Tensor) and image.ndim == 3 else image
        pixels = checked_pixels(image, "image", packed.program, packed.weights.device)
        if (made := self._runner(packed).plan(pixels)) is None:
            raise ValueError(
                "plan: expected a fidelity or a budget, and a model that carries a fit (fit_exits); got none"
                if self._not_shared is None
                else f"plan: expected a network that can be planned: {self._not_shared}"
            )
        return made

    def forward_patches(self, patches: Tensor, exit_at: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Upscale patches independently of each other.

        patches: float ``[N, C, h, w]``, on the model's device, finite. exit_at: int64 ``[N]``, the stage
        after which each patch leaves, instead of the threshold.
        Returns the pictures ``[N, C, s * h, s * w]`` in the patches' dtype, the stage after which each
        patch left (int64 ``[N]``) and the incremental capacity predicted there (float32 ``[N]``, NaN for
        a network without exits).

        Raises TypeError and ValueError as `forward` does, ValueError for a budget, which is an image's, and no exit_at.
        """
        packed = self.packed
        pixels = checked_pixels(patches, "patches", packed.program, packed.weights.device)
        if exit_at is None and (name := self._policy.needs_fit) is not None:
            raise ValueError(
                f"{name}: expected none for patches, which are no whole image; give exit_at, or a threshold"
            )
        if exit_at is not None:
            exit_at = expect(exit_at, "exit_at", torch.int64, (len(pixels),), pixels.device)
            check_stages(exit_at, "exit_at", 0, len(packed.program.stages))
        results = run_patches(pixels, packed, Exits(exit_boundary(self._threshold(packed.program)), exit_at))
        return results.sr.to(patches.dtype), results.exit_index, results.capacity

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Load the wrapped model's own state dict."""
        result = super().load_state_dict(state_dict, *args, **kwargs)
        self._pack_ahead()
        return result

    def train(self, mode: bool = True) -> APEForward:
        """Set training or evaluation mode of this module and the wrapped model."""
        super().train(mode)
        if not mode:
            self.refresh()
        return self

    def refresh(self) -> None:
        """Read the model's weights anew at the next call.

        They are read anew by themselves when they were assigned, loaded, moved or changed in place. What is written
        through ``.data`` PyTorch does not count: on a CPU it is noticed if it changes the first value of any tensor, as
        the moving averages of BasicSR do. Elsewhere call this after it, or `eval`, which does the same.
        """
        self._programs = PackedModel(self.model)
        self._pack_ahead()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> APEForward:
        super()._apply(fn, recurse)
        self._pack_ahead()
        return self

    def _pack_ahead(self) -> None:
        """Pack now, for calls that are traced; what cannot run yet (another device?) is said when it is called."""
        with contextlib.suppress(BackendUnavailable):
            _ = self.packed_for_images

    def extra_repr(self) -> str:
        """What `repr` shows of the settings."""
        names = ("threshold", "fidelity", "budget", "context", "cell", "patch_size", "overlap", "blend", "backend")
        settings = {name: getattr(self, name) for name in names}
        return ", ".join(f"{name}={value}" for name, value in settings.items())

    @property
    def _device(self) -> torch.device:
        return device_of(self.model)

    def __getstate__(self) -> dict[str, Any]:
        # copying and pickling: the program shares the weights of this model
        return {name: value for name, value in self.__dict__.items() if name != "_programs"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._programs = PackedModel(self.model)
        self._pack_ahead()


def _own_threshold(program: PatchProgram) -> float:
    own = program.exit_threshold
    if own is not None and own < 0:
        raise ValueError(f"model.exit_threshold: expected at least 0 where no threshold is given, got {own}")
    return 0.0 if own is None else max(0.0, 1.0 - own)
