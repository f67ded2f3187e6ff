//! How much of something one tenant may have at once, so that nobody pays for a neighbour.

use std::{collections::HashMap, sync::Arc};

use events_model::TenantId;
use parking_lot::Mutex;

/// Places per tenant. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Shares {
    taken: Arc<Mutex<HashMap<TenantId, usize>>>,
    most: usize,
}

/// A place; dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Place {
    taken: Arc<Mutex<HashMap<TenantId, usize>>>,
    tenant: TenantId,
}

impl Shares {
    /// So many places for each tenant.
    pub(crate) fn new(most: usize) -> Self {
        Self { taken: Arc::default(), most }
    }

    /// Takes a place, if the tenant has one left.
    pub(crate) fn take(&self, tenant: &TenantId) -> Option<Place> {
        let mut taken = self.taken.lock();
        let count = taken.entry(tenant.clone()).or_default();
        if *count >= self.most {
            return None;
        }
        *count = count.saturating_add(1);
        Some(Place { taken: Arc::clone(&self.taken), tenant: tenant.clone() })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.taken.lock();
        if let Some(count) = taken.get_mut(&self.tenant) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                taken.remove(&self.tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_tenant_leaves_its_neighbour_alone_and_a_place_comes_back() {
        let shares = Shares::new(1);
        let (acme, other) = (TenantId::new("acme").unwrap(), TenantId::new("other").unwrap());
        let place = shares.take(&acme).unwrap();
        assert!(shares.take(&acme).is_none());
        assert!(shares.take(&other).is_some());
        drop(place);
        assert!(shares.take(&acme).is_some());
        assert!(shares.taken.lock().is_empty());
    }
}
