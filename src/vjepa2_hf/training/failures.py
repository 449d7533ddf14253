"""Failures of a machine, explained in one sentence: out of memory, a killed worker, another process that ended."""

ONWARD = "continue with resume=latest"


def explain_failure(error: BaseException) -> str | None:
    """A sentence with the likely cause and what to do, or None for an error that is not of the machine."""
    text = " ".join(str(error).split())
    if "DataLoader worker" in text and ("killed by signal" in text or "exited unexpectedly" in text):
        return _of_worker(f"{text} {error.__cause__ or ''}")
    if type(error).__name__ == "OutOfMemoryError" or "CUDA out of memory" in text:
        return (
            f"The GPU ran out of memory ({text[:120]}); lower batch_size and raise gradient_accumulation_steps by the "
            "same factor, set gradient_checkpointing=true where the script has it, or estimate what fits with `python "
            f"-m vjepa2_hf.training.capacity`; then {ONWARD}."
        )
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in text:
        return (
            f"This machine ran out of memory ({text[:120] or 'MemoryError'}); lower batch_size or num_workers, or use "
            f"a machine with more memory, then {ONWARD}."
        )
    if "Connection closed by peer" in text or "Connection reset by peer" in text or _is_of_nccl(error):
        return f"Another process of this run has ended ({text[:160]}); see its message or exit code, then {ONWARD}."
    return None


def _of_worker(text: str) -> str:
    cause = "exited"
    if "killed by signal" in text:
        cause = f"was killed by the signal {text.split('killed by signal: ')[-1].split('.')[0].strip()!r}"
    likely = "most likely this machine ran out of memory: lower num_workers or batch_size"
    if "Bus error" in cause or "shared memory" in text:
        likely = "the shared memory (/dev/shm) is full: raise its limit, or lower num_workers or batch_size"
    return f"A process that loads data (num_workers) {cause}; {likely}, then {ONWARD}."


def _is_of_nccl(error: BaseException) -> bool:
    return type(error).__name__ in ("DistBackendError", "DistNetworkError")
