"""Routes of webhooks: each user's own, all for operators."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Literal

from fastapi import APIRouter, Path
from pydantic import BaseModel, Field

from segfleet.server.paging import Before, Limit, Page, next_of
from segfleet.server.rights import IdentityArg
from segfleet.server.schemas import Body, DoneAnswer, EmptyBody
from segfleet.server.services import ServicesArg

router = APIRouter(prefix="/webhooks", tags=["webhooks"])


class WebhookBody(Body):
    """What is to be told, and where."""

    url: Annotated[str, Field(max_length=2000)]
    events: Annotated[list[Annotated[str, Field(max_length=32)]], Field(max_length=32)]
    project: Annotated[str, Field(max_length=63)] | None = Field(None, description="null: all, for operators")


class WebhookAnswer(BaseModel):
    """A webhook; `deliveries` counts its events by state."""

    id: str
    url: str
    events: list[str]
    project: str | None
    owner: str
    created_at: float
    deliveries: dict[str, int]


class NewWebhookAnswer(WebhookAnswer):
    """A webhook with its secret, which is not shown again."""

    secret: str


class WebhooksAnswer(BaseModel):
    """Webhooks, the oldest first."""

    webhooks: list[WebhookAnswer]


class SentAnswer(BaseModel):
    """An event that was put into the outbox."""

    delivery: str


WebhookId = Annotated[str, Path(description="of the webhook")]


class DeliveryAnswer(BaseModel):
    """An event for a webhook; times are seconds since the epoch."""

    seq: int
    id: str
    event: str
    job: str | None
    state: Literal["pending", "delivered", "dead"]
    tries: int
    answer: str = Field(description="to the last try")
    created_at: float
    due_at: float = Field(description="of the next try, if it is pending")
    ended_at: float | None


class DeliveriesAnswer(Page):
    """A page of a webhook's events of the last days, the newest first."""

    deliveries: list[DeliveryAnswer]


@router.get("")
def list_webhooks(services: ServicesArg, caller: IdentityArg) -> WebhooksAnswer:
    """The caller's webhooks, or all for operators."""
    return WebhooksAnswer(webhooks=[WebhookAnswer(**found) for found in services.webhooks.webhooks(caller)])


@router.post("", status_code=HTTPStatus.CREATED)
def create_webhook(body: WebhookBody, services: ServicesArg, caller: IdentityArg) -> NewWebhookAnswer:
    """Let events of jobs be posted to an address."""
    made, secret = services.webhooks.create(body.url, body.events, body.project, caller)
    return NewWebhookAnswer(**made, secret=secret)


@router.delete("/{webhook_id}")
def delete_webhook(webhook_id: WebhookId, _body: EmptyBody, services: ServicesArg, caller: IdentityArg) -> DoneAnswer:
    """Take a webhook away, with all that waits for it."""
    services.webhooks.delete(webhook_id, caller)
    return DoneAnswer()


@router.post("/{webhook_id}/test", status_code=HTTPStatus.ACCEPTED)
def try_webhook(webhook_id: WebhookId, _body: EmptyBody, services: ServicesArg, caller: IdentityArg) -> SentAnswer:
    """Send an event that tells of nothing; what becomes of it stands among the deliveries."""
    return SentAnswer(delivery=services.webhooks.test(webhook_id, caller))


@router.get("/{webhook_id}/deliveries")
def list_deliveries(
    webhook_id: WebhookId, services: ServicesArg, caller: IdentityArg, before: Before = None, limit: Limit = 100
) -> DeliveriesAnswer:
    """What became of a webhook's events."""
    found = services.webhooks.deliveries(webhook_id, caller, limit, before)
    answers = [DeliveryAnswer(**row) for row in found]
    return DeliveriesAnswer(deliveries=answers, next=next_of(answers, limit))
