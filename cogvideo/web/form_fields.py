"""The input fields of the page, by name and in one order.

Gradio passes values by position, in the order of the input components. These classes declare each order once: an
instance contains either the components or their values.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Generic, TypeVar

Field = TypeVar("Field")


@dataclass(frozen=True)
class FieldGroup(Generic[Field]):
    """A group of input fields: components, or the values that they send."""

    def in_order(self) -> list[Field]:
        """Return the fields in the order in which Gradio passes their values."""
        return [getattr(self, field.name) for field in fields(self)]


@dataclass(frozen=True)
class FormFields(FieldGroup[Field]):
    """The fields that describe a video: those of `cogvideo.web.form.Form`."""

    prompt: Field
    seed: Field
    num_frames: Field
    duration: Field
    guidance_scale: Field
    temperature: Field
    top_k: Field
    superres: Field
    interpolation_seed: Field
    first_frame: Field


@dataclass(frozen=True)
class SubmitFields(FormFields[Field]):
    """All fields that are sent with a new job."""

    model: Field
    memory: Field
    random_seed: Field
    embed_settings: Field


@dataclass(frozen=True)
class EstimateFields(FieldGroup[Field]):
    """The fields that determine how long a job takes."""

    num_frames: Field
    duration: Field
    superres: Field
    model: Field
    memory: Field
