"""Two ways to ask the running page: the package gradio_client, and plain HTTP."""

import base64
import io
import json
from pathlib import Path

import httpx
import numpy as np
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image


class GradioClient:
    """Asks as the package gradio_client does: files are uploaded, answers downloaded."""

    def __init__(self, url, folder):
        self._client = Client(url, verbose=False, download_files=folder)

    def image(self, path):
        """How an image is named in a request."""
        return handle_file(str(path))

    def ask(self, endpoint, *data):
        """The answer, drawn ones as arrays; a refusal as a string."""
        try:
            answer = self._client.predict(*data, api_name=f"/{endpoint}")
        except AppError as refusal:
            return str(refusal.message)
        if not isinstance(answer, tuple):
            return answer
        drawn = [np.asarray(Image.open(path)) for path in answer[1:]]
        for path in answer[1:]:
            Path(path).unlink()
        return (answer[0], *drawn)


class PlainClient:
    """Asks over plain HTTP: images are sent as data: URIs."""

    def __init__(self, url, folder):
        self._url, self._http = url, httpx.Client(timeout=600)

    def image(self, path):
        """How an image is named in a request."""
        return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"

    def ask(self, endpoint, *data):
        """As of `GradioClient`; raises `RuntimeError` for what is an error of the server."""
        call = f"{self._url}/gradio_api/call/{endpoint}"
        begun = self._checked(self._http.post(call, json={"data": data}))
        if "event_id" not in begun.json():
            return begun.json()["error"]
        told = self._checked(self._http.get(f"{call}/{begun.json()['event_id']}")).text
        event, answer = [line.partition(": ")[2] for line in told.splitlines() if line][-2:]
        answer = json.loads(answer)
        if event == "error":
            return answer["error"]
        if len(answer) == 1:
            return answer[0]
        drawn = [self._checked(self._http.get(file["url"])).content for file in answer[1:]]
        return (answer[0], *(np.asarray(Image.open(io.BytesIO(png))) for png in drawn))

    def _checked(self, answer):
        if answer.status_code >= 500:
            raise RuntimeError(f"{answer.request.url} was answered with status {answer.status_code}.")
        return answer
