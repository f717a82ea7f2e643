"""How the exchange says no: Binance's numeric codes, their texts and HTTP statuses.

Source: Binance USD-M futures API, "Error Code"; the texts are the ones that the exchange sends.
"""

from __future__ import annotations

from typing import Any

# code: (HTTP status, text); a text with {} takes arguments
CODES: dict[int, tuple[int, str]] = {
    -1001: (503, "Internal error; unable to process your request. Please try again."),
    -1003: (429, "Too many requests; current limit is {} request weight per 1 MINUTE. Please use the "
            "websocket for live updates to avoid polling the API."),
    -1007: (408, "Timeout waiting for response from backend server. Send status unknown; execution status "
            "unknown."),
    -1008: (503, "Server is currently overloaded with other requests. Please try again in a few minutes."),
    -1015: (429, "Too many new orders; current limit is {} orders per 1 MINUTE."),
    -1021: (400, "Timestamp for this request is outside of the recvWindow."),
    -1022: (400, "Signature for this request is not valid."),
    -1100: (400, "Illegal characters found in parameter '{}'."),
    -1102: (400, "Mandatory parameter '{}' was not sent, was empty/null, or malformed."),
    -1106: (400, "Parameter '{}' sent when not required."),
    -1111: (400, "Precision is over the maximum defined for this asset."),
    -1115: (400, "Invalid timeInForce."),
    -1116: (400, "Invalid orderType."),
    -1117: (400, "Invalid side."),
    -1120: (400, "Invalid interval."),
    -1121: (400, "Invalid symbol."),
    -1125: (400, "This listenKey does not exist."),
    -1128: (400, "Combination of optional parameters invalid."),
    -1130: (400, "Data sent for parameter '{}' is not valid."),
    -2007: (400, "Invalid callBack rate."),
    -2011: (400, "Unknown order sent."),
    -2013: (400, "Order does not exist."),
    -2014: (401, "API-key format invalid."),
    -2015: (401, "Invalid API-key, IP, or permissions for action."),
    -2019: (400, "Margin is insufficient."),
    -2021: (400, "Order would immediately trigger."),
    -2022: (400, "ReduceOnly Order is rejected."),
    -2025: (400, "Reach max open order limit."),
    -2027: (400, "Exceeded the maximum allowable position at current leverage."),
    -2028: (400, "Leverage is smaller than permitted: insufficient margin balance."),
    -4001: (400, "Price less than 0."),
    -4002: (400, "Price greater than max price."),
    -4003: (400, "Quantity less than or equal to zero."),
    -4004: (400, "Quantity less than min quantity."),
    -4005: (400, "Quantity greater than max quantity."),
    -4014: (400, "Price not increased by tick size."),
    -4015: (400, "Client order id length should not be more than 36 chars."),
    -4016: (400, "Limit price can't be higher than {}."),
    -4024: (400, "Limit price can't be lower than {}."),
    -4021: (400, "Invalid depth limit."),
    -4023: (400, "Qty not increased by step size."),
    -4028: (400, "Leverage {} is not valid"),
    -4045: (400, "Reach max stop order limit."),
    -4046: (400, "No need to change margin type."),
    -4047: (400, "Margin type cannot be changed if there exists open orders."),
    -4048: (400, "Margin type cannot be changed if there exists position."),
    -4059: (400, "No need to change position side."),
    -4061: (400, "Order's position side does not match user's setting."),
    -4084: (400, "Method is not allowed currently. Upcoming soon."),
    -4116: (400, "ClientOrderId is duplicated."),
    -4118: (400, "ReduceOnly Order Failed. Please check your existing position and open orders"),
    -4120: (400, "Order type not supported for this endpoint. Please use the Algo Order API endpoints "
            "instead."),
    -4130: (400, "An open stop or take profit order with GTE and closePosition in the direction is "
            "existing."),
    -4136: (400, "Target strategy invalid for orderType {},closePosition true"),
    -4137: (400, "Quantity must be zero with closePosition equals true."),
    -4141: (400, "Symbol is closed."),
    -4161: (400, "Leverage reduction is not supported in Isolated Margin Mode with open positions."),
    -4164: (400, "Order's notional must be no smaller than {} (unless you choose reduce only)."),
    -4165: (400, "Invalid time interval"),
    -4171: (400, "Adjusted asset mode is currently set and does not need to be adjusted repeatedly"),
    -5021: (400, "Due to the order could not be filled immediately, the FOK order has been rejected. The "
            "order will not be recorded in the order history"),
    -5022: (400, "Due to the order could not be executed as maker, the Post Only order will be rejected. The "
            "order will not be recorded in the order history"),
    -5024: (400, "Symbol is not in trading status. Order amendment is not permitted."),
    -5026: (400, "Exceed maximum modify order limit."),
    -5027: (400, "No need to modify the order."),
    -5029: (400, "Order's notional must be no smaller than {}"),
    -20132: (400, "The client algo id is duplicated"),
}  # fmt: skip


class Rejected(Exception):  # noqa: N818 - what happened to the request, not to the program
    """A request that the exchange refuses; nothing was done.

    Attributes:
        code: Binance's, negative.
        text: as the exchange sends it.
        status: of the HTTP answer.
        headers: of the HTTP answer, beside the usual ones.
    """

    def __init__(self, code: int, *arguments: object, text: str | None = None) -> None:
        status, template = CODES[code]
        self.code, self.status = code, status
        self.text = template.format(*arguments) if text is None else text
        self.headers: dict[str, str] = {}
        super().__init__(f"{code}: {self.text}")

    def payload(self) -> dict[str, Any]:
        """The JSON body."""
        return {"code": self.code, "msg": self.text}
