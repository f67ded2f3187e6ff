//! The ways to read what the runners of the read models keep up to date.

use events_model::Position;
use projections::{Projection as _, Reader, billing::Billing, groups::Groups, tenants::Tenants};

/// The read models.
#[derive(Debug, Clone)]
pub struct Readers {
    /// All tenants at a glance.
    pub tenants: Reader<Tenants>,
    /// What each tenant pays.
    pub billing: Reader<Billing>,
    /// All consumer groups at a glance.
    pub groups: Reader<Groups>,
}

impl Readers {
    /// How far each is.
    pub fn positions(&self) -> [(&'static str, Position); 3] {
        [
            (Tenants::NAME, self.tenants.position()),
            (Billing::NAME, self.billing.position()),
            (Groups::NAME, self.groups.position()),
        ]
    }

    /// How many events each could not apply.
    pub fn parked(&self) -> [(&'static str, u64); 3] {
        [
            (Tenants::NAME, self.tenants.parked().count),
            (Billing::NAME, self.billing.parked().count),
            (Groups::NAME, self.groups.parked().count),
        ]
    }
}
