//! The pair of regions, started with `regions/eu.conf` and `regions/us.conf`.

use super::{
    Error, NatsServer, READY_WITHIN, attempt, configurations,
    ports::{self, Port},
};

/// Of a region at its peer, in tests.
const MIRROR_PASSWORD: &str = "mirror-in-tests";
/// One connection that each server makes and one that it takes.
const LINKS: u64 = 2;

/// Two regions, each with a log of its own, which may source the other's commits of the zone `global`.
#[derive(Debug)]
pub struct NatsRegions {
    /// Region `eu`.
    pub eu: NatsServer,
    /// Region `us`.
    pub us: NatsServer,
}

impl NatsRegions {
    /// Starts both and waits until they are connected.
    ///
    /// # Errors
    /// There is no binary, or a server does not start.
    pub fn start() -> Result<Self, Error> {
        attempt(|| {
            let (eu, us) = (ports::reserve()?, ports::reserve()?);
            let (eu_address, us_address) = (eu.address(), us.address());
            let mut pair = Self { eu: launch("eu", eu, &us_address)?, us: launch("us", us, &eu_address)? };
            for server in [&mut pair.eu, &mut pair.us] {
                server.wait_healthy(READY_WITHIN)?;
            }
            pair.wait_connected()?;
            Ok(pair)
        })
    }

    /// Waits until each region is connected to the other.
    ///
    /// # Errors
    /// They are not in time.
    pub fn wait_connected(&mut self) -> Result<(), Error> {
        for server in [&mut self.eu, &mut self.us] {
            server.wait_for("connected to the other region", READY_WITHIN, |server| {
                server.look("/leafz").is_some_and(|report| report["leafnodes"] == LINKS)
            })?;
        }
        Ok(())
    }
}

fn launch(region: &str, mirror: Port, peer: &str) -> Result<NatsServer, Error> {
    let environment = vec![
        ("FREEHOLD_NATS_MIRROR_LISTEN", mirror.address()),
        ("FREEHOLD_NATS_MIRROR_PASSWORD", MIRROR_PASSWORD.to_owned()),
        ("FREEHOLD_NATS_PEER", format!("nats-leaf://{region}:{MIRROR_PASSWORD}@{peer}")),
    ];
    let configuration = configurations().join(format!("regions/{region}.conf"));
    NatsServer::launch(
        region,
        configuration,
        ports::reserve()?,
        ports::reserve()?,
        vec![mirror],
        (Vec::new(), environment),
    )
}
