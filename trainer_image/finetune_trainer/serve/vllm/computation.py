"""How a vLLM server computes, which decides how exactly its predictions can be compared."""

from typing import NamedTuple, Self

from starlette.applications import Starlette

UNKNOWN = "unknown"


class Computation(NamedTuple):
    """Device and precision of a server."""

    device: str
    """Type of the device: cpu or cuda."""
    dtype: str
    """Such as float32."""
    quantized: bool

    @classmethod
    def of(cls, server: Starlette) -> Self:
        """That of vLLM's application. `UNKNOWN` if its version keeps its config elsewhere."""
        try:
            config = server.state.vllm_config
            return cls(
                device=str(config.device_config.device_type),
                dtype=str(config.model_config.dtype).removeprefix("torch."),
                quantized=config.model_config.quantization is not None,
            )
        except AttributeError:
            return cls(device=UNKNOWN, dtype=UNKNOWN, quantized=False)
