"""Updates of the page's components: values, choices and labels. Contains no job logic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from cogvideo.config import Preset
from cogvideo.jobs.log_entries import JsonObject
from cogvideo.jobs.model_registry import ModelEntry
from cogvideo.web.components import Components, FormContext
from cogvideo.web.form import Form, values_from_form
from cogvideo.web.model_options import memory_choices, model_choices, model_note
from cogvideo.web.strings import Strings, brand_html, footer_markdown, outcome_html, rate_choices, seconds_choices

Updates = dict[Any, Any]
"""Gradio components and their new values or properties."""


class PageUpdates:
    """Builder of updates for the components."""

    def __init__(self, components: Components, strings: Strings, models: Sequence[ModelEntry]) -> None:
        self.components, self.strings, self._models = components, strings, models

    @property
    def form_outputs(self) -> list[Any]:
        """The components that `fill` changes, and the notice."""
        c = self.components
        return [*c.form.in_order(), c.model, c.model_note, c.memory, c.random_seed, c.outcome, c.notice]

    @property
    def default_outputs(self) -> list[Any]:
        """The components that `defaults` changes."""
        c = self.components
        return [c.guidance_scale, c.temperature, c.top_k, c.superres]

    @property
    def label_outputs(self) -> list[Any]:
        """The components that `translate_labels` changes."""
        return list(self.translate_labels(FormContext("zh", self._models[0])))

    def fill(self, form: Form, context: FormContext, first_frame: JsonObject | None) -> Updates:
        """Show a form. `first_frame`: its first frame as `first_frame_value` returns it."""
        c = self.components
        values = values_from_form(form, first_frame).in_order()
        updates: Updates = {field: gr.update(value=value) for field, value in zip(c.form.in_order(), values)}
        updates |= {c.random_seed: gr.update(value=form.seed is None), c.model: gr.update(value=context.model.name)}
        return {**updates, **self.model_details(context)}

    def defaults(self, preset: Preset) -> Updates:
        """Show the model's own values of the settings that differ between models."""
        c, form = self.components, Form.default(preset)
        return {
            c.guidance_scale: form.guidance_scale,
            c.temperature: form.temperature,
            c.top_k: form.top_k,
            c.superres: form.superres,
        }

    def estimate(self, form: Form, language: str, seconds: float | None, queued: int = 0) -> Updates:
        """Show the frame rates of the chosen length, and the result with its estimated time.

        `seconds`: estimated time, if known; `queued`: jobs ahead of this one.
        """
        choices = rate_choices(self.strings, language, form.duration)
        outcome = outcome_html(self.strings, language, form, seconds, queued)
        return {self.components.num_frames: gr.update(choices=choices), self.components.outcome: outcome}

    def model_details(self, context: FormContext) -> Updates:
        """Show the note about a model, and its memory presets if it has a choice."""
        choices = memory_choices(self.strings, context.language, context.placement) if context.placement else []
        memory = gr.update(choices=choices, value="", visible=True) if choices else gr.update(value="", visible=False)
        note = model_note(self.strings, context.language, context.model)
        return {self.components.model_note: note, self.components.memory: memory}

    def translate_labels(self, context: FormContext) -> Updates:
        """Show all labels in the context's language."""
        c, language = self.components, context.language
        details = self.model_details(context)
        return {
            **{component: self._label(language, *keys) for component, keys in self._label_keys().items()},
            c.brand: brand_html(self.strings, language),
            c.footer: footer_markdown(self.strings, language),
            c.prompt: gr.update(
                label=self.strings.text(language, "prompt"), placeholder=self.strings.text(language, "prompt_hint")
            ),
            c.submit_button: self.strings.text(language, "make"),
            c.drafts_button: self.strings.text(language, "drafts"),
            c.model: {
                **self._label(language, "model"),
                "choices": model_choices(self.strings, language, self._models),
            },
            c.model_note: details[c.model_note],
            c.memory: {**self._label(language, "memory", "memory_hint"), **details[c.memory]},
            c.duration: {
                **self._label(language, "seconds"),
                "choices": seconds_choices(self.strings, language),
            },
        }

    def _label_keys(self) -> dict[Any, tuple[str, ...]]:
        """Return the keys of label and hint for components that have nothing else to translate."""
        c = self.components
        return {
            c.language: ("language",),
            c.image_section: ("start",),
            c.image: ("start",),
            c.num_frames: ("rate",),
            c.random_seed: ("fresh",),
            c.settings_section: ("settings",),
            c.phrases_section: ("phrases",),
            c.superres: ("superres",),
            c.embed_settings: ("comment",),
            c.settings_file: ("file",),
            c.interpolation_seed: ("between_seed", "between_hint"),
            c.seed: ("seed", "seed_hint"),
            c.guidance_scale: ("guidance", "guidance_hint"),
            c.temperature: ("temperature", "temperature_hint"),
            c.top_k: ("top_k", "top_k_hint"),
        }

    def _label(self, language: str, key: str, hint: str | None = None) -> Updates:
        label = {**gr.update(), "label": self.strings.text(language, key)}
        return {**label, "info": self.strings.text(language, hint)} if hint else label


def merged(first: Updates, second: Updates) -> Updates:
    """Merge updates. If both change properties of one component, the result contains the properties of both."""
    both = dict(first)
    for component, update in second.items():
        combine = isinstance(update, dict) and isinstance(both.get(component), dict)
        both[component] = {**both[component], **update} if combine else update
    return both
