"""Handlers of uploaded files: a first frame, or a video with embedded settings."""

from __future__ import annotations

from pathlib import Path

from cogvideo.errors import CogVideoError
from cogvideo.jobs.artifacts import read_settings
from cogvideo.media.images import read_image
from cogvideo.web.form import Form
from cogvideo.web.handler_context import HandlerContext, show_errors
from cogvideo.web.session import Session
from cogvideo.web.strings import notice_html
from cogvideo.web.updates import Updates


class UploadHandlers:
    """Handlers of the two upload fields."""

    def __init__(self, context: HandlerContext) -> None:
        self.context = context

    @show_errors
    def upload_image(self, session: Session, file: str | None, model: str) -> Updates:
        """Encode an uploaded image as the first frame and show what the model sees. Deletes the file."""
        context, components = self.context, self.context.components
        if not file:
            return {components.notice: ""}
        try:
            image = read_image(Path(file), context.jobs.models.entry(model).preset.frame_size)
            first_frame = context.first_frame(context.jobs.models.encode(image, model), model, image)
        except CogVideoError as error:  # the field is cleared for another image
            return {components.image: None, components.notice: notice_html(error.message(session.language), "error")}
        finally:
            Path(file).unlink(missing_ok=True)
        ready = context.notice(session.language, "start_ready")
        return {components.first_frame: first_frame, components.image: None} | ready

    @show_errors
    def restore_settings(self, session: Session, file: str | None) -> Updates:
        """Fill the form with the settings in a downloaded video. Clears the upload field in any case."""
        context, language = self.context, session.language
        try:
            found = read_settings(Path(file)) if file else None
            if found is None:
                return self._refuse_file(context.text(language, "file_without"))
            request, model = found
            model = model if model in context.jobs.models.entries else context.default_model
            first_frame = context.first_frame(request.first_frame, model) if request.first_frame else None
        except CogVideoError as error:
            return self._refuse_file(error.message(language))
        form = Form.from_request(request, context.jobs.models.entry(model).preset.sampling)
        filled = context.fill(form, language, model, first_frame)
        return {**filled, context.components.settings_file: None, **context.notice(language, "file_restored")}

    def _refuse_file(self, message: str) -> Updates:
        components = self.context.components
        return {components.settings_file: None, components.notice: notice_html(message, "error")}
