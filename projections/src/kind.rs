//! Full names of the events that read models here are about, so that all others are passed over undecoded.

macro_rules! kinds {
    ($($name:ident = $text:literal),+ $(,)?) => {
        $(pub(crate) const $name: &str = concat!("freehold.log.v1.", $text);)+
    };
}

kinds!(
    TENANT_REGISTERED = "TenantRegistered",
    PLAN_SET = "PlanSet",
    TENANT_SUSPENDED = "TenantSuspended",
    TENANT_RESUMED = "TenantResumed",
    REQUEST_ADMITTED = "RequestAdmitted",
    REQUEST_SETTLED = "RequestSettled",
    RESERVATION_EXPIRED = "ReservationExpired",
    REQUESTS_REFUSED = "RequestsRefused",
    DROPPED_FROM_READ_MODEL = "DroppedFromReadModel",
    READ_MODEL_REDRIVEN = "ReadModelRedriven",
);
