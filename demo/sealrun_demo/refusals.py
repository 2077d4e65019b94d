"""What a VM with a TPM is refused, and what somebody is who has only its words: `demo/run --tpm`.

Evidence and tokens come from the running VM, as its host can have them; the requests to the key broker
are made here by hand, as a thief of them would make them.
"""

import base64
import json
import os
import ssl
import time
import urllib.error
import urllib.request
from typing import Any, NamedTuple

from sealrun_demo import telling, tools

# The thief's own key: that of RFC 7515, appendix A.3. What is refused here never gets to use it.
KEY = {
    "kty": "EC",
    "crv": "P-256",
    "alg": "ECDH-ES+A256KW",
    "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
    "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
}


class Answer(NamedTuple):
    """Of the key broker. said: its JSON; cookie: of the session."""

    status: int
    said: dict[str, Any]
    cookie: str


class Thief:
    """Speaks KBS to the broker at `url`. init_data: the text that the VM was given."""

    def __init__(self, url: str, authority: str, init_data: str) -> None:
        self._url = f"{url}/kbs/v0"
        self._trust = ssl.create_default_context(cafile=authority)
        self._init_data = init_data

    def replays(self, sealrun: str, directory: str, container: str) -> None:
        """Evidence of a running VM, and a nonce that was served before. Raises telling.Failed."""
        file = os.path.join(directory, "stolen.json")
        nonce = os.urandom(32).hex()
        attest = [sealrun, "attest", "--no-verify", "--nonce", nonce, "--output", file, container]
        tools.run(attest)
        with open(file, encoding="utf-8") as stream:
            evidence = json.load(stream)["evidence"]
        first, second = self._challenge(), self._challenge()
        self._refused(
            self._attest(first.cookie, first.said["nonce"], evidence),
            "is not the hash of this session's nonce and key",
            "evidence that the VM gave for something else",
        )
        self._refused(
            self._attest(second.cookie, first.said["nonce"], evidence),
            "the nonce is not that of this session",
            "a nonce that served before",
        )

    def waits(self, token: str, resource: str) -> None:
        """A token of the VM's: good while it lasts, and not after. Raises telling.Failed."""
        bearer = {"Authorization": f"Bearer {token}"}
        fresh = self._ask(f"resource/{resource}", None, bearer)
        telling.claim(
            fresh.status == 200 and "ciphertext" in fresh.said,
            "the VM's token gets the key while it is fresh, encrypted for that VM alone",
        )
        middle = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(middle + "=" * (-len(middle) % 4)))
        left = max(0.0, float(claims["exp"]) - time.time()) + 1
        telling.tell(f"it is good for {left:.0f} s more, which we wait")
        time.sleep(left)
        self._refused(
            self._ask(f"resource/{resource}", None, bearer),
            "the token has expired",
            "the stale token",
        )

    def _refused(self, answer: Answer, reason: str, what: str) -> None:
        detail = str(answer.said.get("detail", ""))
        telling.output(f"{answer.status}: {detail}")
        telling.claim(answer.status == 401 and reason in detail, f"{what} is worth nothing")

    def _challenge(self) -> Answer:
        wish = {"version": "0.4.0", "tee": "tpm", "extra-params": ""}
        return self._ask("auth", wish, {})

    def _attest(self, cookie: str, nonce: str, evidence: object) -> Answer:
        body = {
            "init-data": {"format": "toml", "body": self._init_data},
            "runtime-data": {"nonce": nonce, "tee-pubkey": KEY},
            "tee-evidence": {"primary_evidence": evidence, "additional_evidence": ""},
        }
        return self._ask("attest", body, {"Cookie": cookie})

    def _ask(self, path: str, body: object, headers: dict[str, str]) -> Answer:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"{self._url}/{path}", data, {"Content-Type": "application/json", **headers}
        )
        try:
            with urllib.request.urlopen(request, timeout=30, context=self._trust) as answer:
                cookie = str(answer.headers.get("Set-Cookie", "")).partition(";")[0]
                return Answer(answer.status, json.load(answer), cookie)
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, json.load(error), "")
        except urllib.error.URLError as error:
            raise telling.Failed(f"cannot ask the broker: {error}") from error
