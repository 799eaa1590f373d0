"""Flat buffers: tensors stay what they were, as views that lie side by side."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gaeanet.optim.flat import ALIGNMENT, Layout
from gaeanet.optim.muon import as_matrices, is_matrix

shapes = st.lists(
    st.one_of(
        st.tuples(st.integers(1, 9)),
        st.tuples(st.integers(1, 9), st.integers(1, 9)),
        st.tuples(st.integers(1, 5), st.integers(1, 5), st.sampled_from([1, 3]), st.sampled_from([1, 3])),
    ),
    min_size=1,
    max_size=12,
)


def tensors_of(shapes: list[tuple[int, ...]], channels_last: bool) -> list[Tensor]:
    tensors = [torch.randn(shape) for shape in shapes]
    if channels_last:
        tensors = [t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t for t in tensors]
    return tensors


@given(shapes, st.booleans(), st.booleans())
def test_gathered_tensors_keep_values_shapes_and_memory_formats(
    shapes: list[tuple[int, ...]], channels_last: bool, stacked: bool
) -> None:
    tensors = tensors_of(shapes, channels_last)
    before = [(tensor.clone(), tensor.stride()) for tensor in tensors]
    layout = Layout(tensors, stacked)
    buffer = layout.gather(tensors)
    assert buffer.shape == (layout.elements,)
    for tensor, view, (value, stride) in zip(tensors, layout.views(buffer), before):
        assert torch.equal(tensor, value)
        assert tensor.stride() == stride
        assert tensor.data_ptr() == view.data_ptr()
    buffer += 1  # each element of a tensor is in the buffer once, and nothing else is
    for tensor, (value, _) in zip(tensors, before):
        assert torch.equal(tensor, value + 1)
        tensor.zero_()
    assert int((buffer == 1).sum()) == layout.elements - sum(tensor.numel() for tensor in tensors)


@given(shapes, st.booleans())
def test_spans_are_disjoint_and_begin_aligned(shapes: list[tuple[int, ...]], channels_last: bool) -> None:
    tensors = tensors_of(shapes, channels_last)
    layout = Layout(tensors, stacked=True)
    buffer = layout.gather(tensors)
    end = 0
    for span in layout.spans:
        assert span.start >= end
        assert span.start * buffer.element_size() % ALIGNMENT == 0
        end = span.stop
    assert end <= layout.elements
    for tensor in tensors:
        if not is_matrix(tensor):
            assert (tensor.data_ptr() - buffer.data_ptr()) % ALIGNMENT == 0


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_span_of_matrices_is_their_stack(channels_last: bool) -> None:
    tensors = tensors_of([(4, 2, 1, 1), (3,), (4, 2, 1, 1), (6, 2, 3, 3), (4, 1, 3, 3)], channels_last)
    layout = Layout(tensors, stacked=True)
    buffer = layout.gather(tensors)
    pair, single, others = (span.of(buffer) for span in layout.spans)
    assert torch.equal(pair, as_matrices([tensors[0], tensors[2]]))
    assert single.shape == (1, 6, 18)
    assert torch.equal(single.flatten().sort().values, tensors[3].flatten().sort().values)
    assert others.ndim == 1


def test_views_of_a_part_of_a_larger_buffer() -> None:
    tensors = tensors_of([(3,), (2, 2)], channels_last=False)
    layout = Layout(tensors)
    whole = torch.zeros(2 * layout.elements)
    first, second = whole.split(layout.elements)
    for view in layout.views(second):
        view.fill_(1.0)
    assert not first.any()
    assert int(second.sum()) == 7
