"""Makes the channels of alerts from the settings, for the workers and for `florin alert test`."""

from server.flows.alerts import Channels, Mail
from server.flows.webhooks.destinations import Destinations
from server.settings import AlertSettings


def channels_of(settings: AlertSettings, destinations: Destinations) -> Channels:
    """The configured channels."""
    mail = None
    if settings.alert_smtp_url:
        recipients = tuple(one.strip() for one in settings.alert_mail_to.split(",") if one.strip())
        mail = Mail(url=settings.alert_smtp_url, sender=settings.alert_mail_from, recipients=recipients)
    return Channels(destinations, webhook_url=settings.alert_webhook_url, mail=mail)
