"""The GPUs of this machine, asked for live from the driver (NVML); never remembered."""

from __future__ import annotations

from typing import NamedTuple

from tfjob.targets.target import Gpu

__all__ = ["GpuProbe", "probe_gpus"]


class GpuProbe(NamedTuple):
    """What the driver answered. `note` says in words why `gpus` is empty, if it is."""

    gpus: tuple[Gpu, ...]
    driver: str = ""
    note: str = ""


def probe_gpus() -> GpuProbe:
    """Ask NVIDIA's management library for the GPUs of this machine. No driver is an answer, not an error.

    Source: NVML API reference; the order of NVML indices is that of the PCI bus.
    """
    import pynvml  # noqa: PLC0415  # 10 ms that only a probe should pay

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError_LibraryNotFound:
        return GpuProbe((), note="No NVIDIA driver was found on this machine (libnvidia-ml.so.1 is missing).")
    except pynvml.NVMLError as error:
        return GpuProbe((), note=f"The NVIDIA driver does not answer: {error}. Try `nvidia-smi`.")
    try:
        driver = pynvml.nvmlSystemGetDriverVersion()
        gpus = tuple(_gpu(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount()))
    except pynvml.NVMLError as error:
        return GpuProbe((), note=f"The NVIDIA driver stopped answering: {error}. Try `nvidia-smi`.")
    finally:
        pynvml.nvmlShutdown()
    return GpuProbe(gpus, driver, "" if gpus else "The NVIDIA driver is there and reports no GPU.")


def visible(gpus: tuple[Gpu, ...], cuda_visible_devices: str | None) -> tuple[Gpu, ...]:
    """The GPUs that the submitting shell lets its programs see: its own CUDA_VISIBLE_DEVICES narrows what tfjob takes.

    Entries are indices or UUIDs (or unique starts of them); as CUDA does, the list ends at the first entry that is
    not a GPU, and is worth nothing if it names a GPU twice. Source: CUDA C++ Programming Guide, "CUDA Environment Variables".
    """
    if cuda_visible_devices is None:
        return gpus
    chosen: list[Gpu] = []
    for entry in (part.strip() for part in cuda_visible_devices.split(",")):
        match = [
            g for g in gpus if entry == str(g.index) or (not entry.isdigit() and entry and g.uuid.startswith(entry))
        ]
        if len(match) != 1:
            break
        if match[0] in chosen:
            return ()
        chosen.extend(match)
    return tuple(chosen)


def _gpu(pynvml: object, index: int) -> Gpu:
    nvml: object = pynvml
    handle = nvml.nvmlDeviceGetHandleByIndex(index)  # type: ignore[attr-defined]  # pynvml ships no types
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)  # type: ignore[attr-defined]
    return Gpu(
        index=index,
        uuid=nvml.nvmlDeviceGetUUID(handle),  # type: ignore[attr-defined]
        model=nvml.nvmlDeviceGetName(handle),  # type: ignore[attr-defined]
        memory_mib=int(memory.total) // 2**20,
    )
