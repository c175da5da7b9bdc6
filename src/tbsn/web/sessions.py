"""The files of those who use the page of `tbsn serve`, each session's apart, and for as long as its page is open."""

import hashlib
import secrets
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tbsn.errors import InputError
from tbsn.plan import Output, target_of
from tbsn.web import preview


@dataclass(frozen=True)
class Files:
    """What one session has, in a folder that no other session can name: its photo, the result and the views of both."""

    folder: Path

    @property
    def photo(self) -> Path:
        """The photo. Raises `InputError` where there is none any more."""
        photo = next(self.folder.glob("photo/*"), None)
        if photo is None:
            raise InputError("The photo", "is no longer kept here", "drop it again")
        return photo

    @property
    def result(self) -> Path:
        """Where the command would write the result of this photo, but that it lies in a folder of its own."""
        return self.folder / "result" / target_of(self.photo, self.photo.parent, Output()).name

    def take(self, upload: Path) -> None:
        """Move an upload here, in place of all that is here. Raises `InputError`."""
        self.delete()
        (self.folder / "photo").mkdir(parents=True)
        shutil.move(upload, self.folder / "photo" / upload.name)
        preview.check(self.photo)

    def keep_on(self) -> None:
        """Raises `InputError` if the photo has been deleted while it is worked on."""
        _ = self.photo

    def delete(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def open(self) -> bool:
        """Whether there is a photo: the session may end while it is denoised."""
        return any(self.folder.glob("photo/*"))

    def line(self, error: InputError) -> str:
        """An error, with names as the user knows them."""
        return str(error).replace(f"{self.folder}/photo/", "").replace(f"{self.folder}/result/", "")


class Sessions:
    """The sessions whose page is open, by their names, and their files below ``root``, where gradio puts uploads."""

    def __init__(self, root: Path) -> None:
        self.root, self._key = root, secrets.token_bytes(32)
        self._pages: Counter[str] = Counter()

    def files(self, session: str | None) -> Files:
        """The files of a session; the folder's name tells nothing of the session's, nor the other way round."""
        return Files(self.root / hashlib.blake2b(str(session).encode(), key=self._key, digest_size=16).hexdigest())

    def open(self, session: str | None) -> bool:
        """Whether the page of a session is open."""
        return self._pages[str(session)] > 0

    def begin(self, session: str) -> None:
        """A page has been opened, or found its connection again."""
        self._pages[session] += 1

    def end(self, session: str) -> None:
        """It is closed, or lost its connection: its files are deleted, and with the last page all that is left."""
        self._pages[session] -= 1
        if not self.open(session):
            del self._pages[session]
            self.files(session).delete()
        if not self._pages:
            for left in self.root.iterdir():
                if left.is_dir():
                    shutil.rmtree(left, ignore_errors=True)
                else:
                    left.unlink(missing_ok=True)
