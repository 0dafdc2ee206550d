"""Who may call what."""

import grpc

from vlmpress_services.errors import ScopeError, UnauthenticatedError
from vlmpress_services.serving.calls import Call
from vlmpress_services.serving.tokens import TokenFile

BEARER = "bearer "


class Access:
    """Finds out who calls, and refuses what they may not call; health checks need no token.

    Args:
        tokens: None: nobody needs one.
    """

    def __init__(self, tokens: TokenFile | None) -> None:
        self._tokens = tokens

    def check(self, call: Call, context: "grpc.aio.ServicerContext[object, object]") -> None:
        """Sets the call's principal: the token's name, else that of the client's certificate.

        Raises:
            UnauthenticatedError: The token is missing, unknown or expired.
            ScopeError: Its scopes do not cover the method.
        """
        if self._tokens is None or call.method.is_health:
            call.principal = _certificate_name(context)
            return
        header = call.first("authorization")
        if not header.lower().startswith(BEARER):
            raise UnauthenticatedError("authorization: expected a bearer token, got none")
        token = self._tokens.find(header[len(BEARER) :].strip())
        call.principal = token.name
        if not token.covers(call.method):
            raise ScopeError(f"authorization: expected a scope for {call.method.name}, got {', '.join(token.scopes)}")


def _certificate_name(context: "grpc.aio.ServicerContext[object, object]") -> str:
    names = context.auth_context().get("x509_common_name") or ()
    return b",".join(names).decode(errors="replace")
