"""An OpenID provider for tests: on loopback, in a thread, with one client and whoever is said to be at the keyboard."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import RSAKey

CLIENT, SECRET = "editcore", "the client's secret"


class Provider:
    """Knows whoever `person` names; a code works once, for the client and the verifier it was given for."""

    def __init__(self) -> None:
        self.person, self.asked = "", list[str]()
        self._key = RSAKey.generate_key(2048, parameters={"kid": "one", "alg": "RS256", "use": "sig"})
        self._codes: dict[str, dict[str, str]] = {}
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                provider.answer(self, "")

            def do_POST(self) -> None:
                provider.answer(self, self.rfile.read(int(self.headers["Content-Length"])).decode())

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def secrets(self, page: str) -> str:
        """The page's secrets file."""
        values = {
            "redirect_uri": f"{page}/oauth2callback", "cookie_secret": secrets.token_hex(32), "client_id": CLIENT,
            "client_secret": SECRET, "server_metadata_url": f"{self.address}/.well-known/openid-configuration",
        }  # fmt: skip
        return "[auth]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items())

    def answer(self, request: BaseHTTPRequestHandler, body: str) -> None:
        address = urlsplit(request.path)
        given = {name: values[0] for name, values in parse_qs(body or address.query).items()}
        self.asked.append(address.path)
        match address.path:
            case "/.well-known/openid-configuration":
                self._say(request, self._described())
            case "/keys":
                self._say(request, {"keys": [self._key.as_dict(private=False)]})
            case "/authorize":
                code = secrets.token_urlsafe(16)
                self._codes[code] = {**given, "person": self.person}
                self._send_to(request, given["redirect_uri"], code=code, state=given["state"])
            case "/token":
                self._say(request, *self._token(request.headers.get("Authorization", ""), given))
            case "/leave":
                self._send_to(request, given["post_logout_redirect_uri"])
            case _:
                self._say(request, {}, 404)

    def _described(self) -> dict[str, Any]:
        places = {"authorization_endpoint": "/authorize", "token_endpoint": "/token", "jwks_uri": "/keys",
                  "end_session_endpoint": "/leave"}  # fmt: skip
        return {
            "issuer": self.address, **{name: self.address + path for name, path in places.items()},
            "response_types_supported": ["code"], "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["RS256"], "code_challenge_methods_supported": ["S256"],
        }  # fmt: skip

    def _token(self, who: str, given: dict[str, str]) -> tuple[dict[str, Any], int]:
        asked = self._codes.pop(given.get("code", ""), None)
        client = base64.b64encode(f"{CLIENT}:{SECRET}".encode()).decode()
        proof = hashlib.sha256(given.get("code_verifier", "").encode()).digest()
        if asked is None or who != f"Basic {client}":
            return {"error": "invalid_client"}, 401
        if base64.urlsafe_b64encode(proof).rstrip(b"=").decode() != asked["code_challenge"]:
            return {"error": "invalid_grant"}, 400
        now, person = int(time.time()), asked["person"]
        claims = {"iss": self.address, "aud": CLIENT, "sub": person, "name": person, "iat": now, "exp": now + 600,
                  "nonce": asked["nonce"]}  # fmt: skip
        token = jwt.encode({"alg": "RS256", "kid": "one"}, claims, self._key)
        return {"access_token": secrets.token_hex(8), "token_type": "Bearer", "id_token": token, "expires_in": 600}, 200

    def _send_to(self, request: BaseHTTPRequestHandler, address: str, **more: str) -> None:
        request.send_response(302)
        request.send_header("Location", f"{address}?{urlencode(more)}" if more else address)
        request.end_headers()

    def _say(self, request: BaseHTTPRequestHandler, what: Any, status: int = 200) -> None:
        body = json.dumps(what).encode()
        request.send_response(status)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)
