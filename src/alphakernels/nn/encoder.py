"""Encoder layers by the op `local_encoder_layer`: one that takes the place of `torch.nn.TransformerEncoderLayer`, and LocalFormer's, which
has a convolution over time before it."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from .. import ops
from ..ops import _backend
from ..ops.local_encoder_layer import reference


def over_time(conv: nn.Conv1d, x: Tensor, batch_first: bool) -> Tensor:
    """conv(x) along time, of x [B, T, d] if `batch_first`, else [T, B, d]; in x's shape."""
    if batch_first:
        return conv(x.transpose(1, 2)).transpose(1, 2)
    return conv(x.permute(1, 2, 0)).permute(2, 0, 1)


def _hides_all(mask: Tensor) -> bool:
    """Whether a row of the mask hides every key; not looked for where a look would wait for a GPU or tie a graph to the values traced."""
    if mask.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return bool((mask if mask.dtype == torch.bool else mask == -torch.inf).all(-1).any())


class TransformerEncoderLayer(nn.TransformerEncoderLayer):
    """`torch.nn.TransformerEncoderLayer` by the op `local_encoder_layer`: same constructor, same state_dict, same outputs.

    norm_first, an activation other than ReLU, no biases, key padding, masks of each head, hooks on submodules and, on the CPU, masks with
    a row that hides every key run on torch's own; `alphakernels.explain` says so. On a GPU such a row gives NaN.

    Args:
        memory: "auto", or "low" to keep nothing but the input for the backward pass; the rest as torch's.

    Shapes: src [T, B, d], [B, T, d] if `batch_first`, or [T, d] of one sample -> the same; src_mask [T, T], floating point (added to the
    scores) or bool (True: not attended to).
    """

    def __init__(self, *args, memory: str = "auto", **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.memory = memory

    def _uncovered(self, mask: Tensor | None, padding: Tensor | None, src: Tensor | None = None) -> str | None:
        """Why torch's own must run this call, or None."""
        if src is not None and src.is_nested:  # as torch.nn.TransformerEncoder makes it of padded input
            return "the kernels take padded tensors, the input is nested"
        if self.norm_first:
            return "the kernels norm after the sum, the module has norm_first"
        if self.activation is not nn.functional.relu and not isinstance(self.activation, nn.ReLU):
            return f"the kernels have a ReLU, the module's activation is {getattr(self.activation, '__name__', self.activation)}"
        if self.linear1.bias is None:
            return "the kernels have biases, the module has none"
        if padding is not None:
            return "the kernels take whole windows, the call has a src_key_padding_mask"
        if mask is not None and (mask.dim() != 2 or mask.requires_grad):
            return "the kernels take one mask [T, T] without gradient for all samples and heads"
        if mask is not None and _hides_all(mask):
            return "a row of the mask hides every key: torch's attention gives zeros there where a softmax has no value"
        if self.norm1.eps != self.norm2.eps:
            return "the kernels have one eps, the module's norms have two"
        if len({self.self_attn.dropout, self.dropout.p, self.dropout1.p, self.dropout2.p}) > 1:
            return "the kernels have one dropout probability, the module has several"
        if any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks for m in self.modules() if m is not self):
            return "a submodule has hooks, which a fused layer would not call"
        return None

    def _parameters_of_op(self) -> list[Tensor]:
        attention = self.self_attn
        modules = (attention.out_proj, self.linear1, self.linear2, self.norm1, self.norm2)
        return [attention.in_proj_weight, attention.in_proj_bias, *(p for m in modules for p in (m.weight, m.bias))]

    def _additive(self, mask: Tensor | None, like: Tensor) -> Tensor | None:
        if mask is None:
            return None
        if mask.dtype == torch.bool:
            return torch.zeros(mask.shape, dtype=like.dtype, device=like.device).masked_fill(mask, -torch.inf)
        return mask.to(like.dtype)

    def _run(self, x: Tensor, mask: Tensor | None, conv: nn.Conv1d | None = None):
        """y, with a convolution (y, u), of x [B, T, d]."""
        return ops.local_encoder_layer(
            x,
            *self._parameters_of_op(),
            *((conv.weight, conv.bias) if conv is not None else ()),
            heads=self.self_attn.num_heads,
            mask=self._additive(mask, x),
            dropout=self.dropout.p if self.training else 0.0,
            eps=self.norm1.eps,
            memory=self.memory,
            return_conv=conv is not None,
        )

    def forward(
        self, src: Tensor, src_mask: Tensor | None = None, src_key_padding_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        reason = self._uncovered(src_mask, src_key_padding_mask, src)
        if reason is not None:
            _backend.watch_torch("local_encoder_layer", src, reason)
            return super().forward(src, src_mask, src_key_padding_mask, is_causal)
        if src.dim() == 2:
            return self._run(src.unsqueeze(0), src_mask).squeeze(0)
        if self.self_attn.batch_first:
            return self._run(src, src_mask)
        return self._run(src.transpose(0, 1), src_mask).transpose(0, 1)

    def local(self, src: Tensor, conv: nn.Conv1d, src_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """LocalFormer's step: (forward(src + u), u) with u = conv(src) over time; shapes as in `forward`."""
        batch_first = self.self_attn.batch_first
        if self._uncovered(src_mask, None) is not None or conv.bias is None:
            u = over_time(conv, src, batch_first)
            return TransformerEncoderLayer.forward(self, src + u, src_mask), u
        if batch_first:
            return self._run(src, src_mask, conv)
        y, u = self._run(src.transpose(0, 1), src_mask, conv)
        return y.transpose(0, 1), u.transpose(0, 1)

    def attention(self, src: Tensor, src_mask: Tensor | None = None) -> Tensor:
        """The heads' attention weights [B, heads, T, T], dropout left out, of src as `forward` takes it ([heads, T, T] of one sample).
        They are computed for this call alone: mind the memory, and pass the samples you want to see."""
        if src.dim() == 2:
            return self.attention(src.unsqueeze(0 if self.self_attn.batch_first else 1), src_mask).squeeze(0)
        x = src if self.self_attn.batch_first else src.transpose(0, 1)
        x = self.norm1(x) if self.norm_first else x
        attention = self.self_attn
        weights, _ = reference.attention_weights(
            x, attention.in_proj_weight, attention.in_proj_bias, self._additive(src_mask, x), attention.num_heads
        )
        return weights


class LocalformerEncoderLayer(TransformerEncoderLayer):
    """LocalFormer's layer: a convolution of three taps over time added to the input, then `TransformerEncoderLayer`.

    Args: those of `TransformerEncoderLayer`.

    Shapes: src [T, B, d], or [B, T, d] if `batch_first` -> (output, conv(src)), both of src's shape.
    """

    def __init__(self, d_model: int, *args, **kwargs) -> None:
        super().__init__(d_model, *args, **kwargs)
        where = {"device": self.linear1.weight.device, "dtype": self.linear1.weight.dtype}
        self.conv = nn.Conv1d(d_model, d_model, 3, 1, 1, **where)

    def forward(self, src: Tensor, src_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.local(src, self.conv, src_mask)

    def attention(self, src: Tensor, src_mask: Tensor | None = None) -> Tensor:
        """As `TransformerEncoderLayer.attention`, behind the convolution."""
        return super().attention(src + over_time(self.conv, src, self.self_attn.batch_first), src_mask)


class LocalformerEncoder(nn.Module):
    """Qlib's `LocalformerEncoder`: layers with a convolution over time before each, `output + out` at the end, where `out` is the last
    convolution's output.

    Args:
        encoder_layer: a `TransformerEncoderLayer`, copied for each layer.
        num_layers: how many.
        d_model: d of the convolutions.

    Shapes: src [T, B, d], or [B, T, d] where the layer is `batch_first` -> the same.
    """

    def __init__(self, encoder_layer: TransformerEncoderLayer, num_layers: int, d_model: int) -> None:
        super().__init__()
        conv = nn.Conv1d(d_model, d_model, 3, 1, 1)
        self.layers = nn.ModuleList([copy.deepcopy(encoder_layer) for _ in range(num_layers)])
        self.conv = nn.ModuleList([copy.deepcopy(conv) for _ in range(num_layers)])
        self.num_layers = num_layers

    def forward(self, src: Tensor, mask: Tensor | None = None) -> Tensor:
        output = out = src
        for layer, conv in zip(self.layers, self.conv, strict=True):
            output, out = layer.local(output, conv, mask)
        return output + out

    def attention(self, src: Tensor, layer: int = -1, mask: Tensor | None = None) -> Tensor:
        """The heads' attention weights [B, heads, T, T] of one layer, the last unless told."""
        number = range(self.num_layers)[layer]
        output = src
        for i in range(number):
            output, _ = self.layers[i].local(output, self.conv[i], mask)
        last = self.layers[number]
        return last.attention(output + over_time(self.conv[number], output, last.self_attn.batch_first), mask)
