//! Names on the servers: the stream of a region and the subjects of its shards.

use events_model::RegionId;

/// Begins the subject of every group.
pub const SUBJECT_PREFIX: &str = "fh.log";
/// Begins the name of every region's stream.
pub const STREAM_PREFIX: &str = "FH_LOG_";

/// The stream that holds a region's log: `FH_LOG_<REGION>`. Names of regions have no capitals, so that two regions
/// never share one.
pub fn stream_name(region: &RegionId) -> String {
    format!("{STREAM_PREFIX}{}", region.as_str().to_uppercase())
}

/// Everything of a region: `fh.log.<region>.>`.
pub fn region_subjects(region: &RegionId) -> String {
    format!("{SUBJECT_PREFIX}.{region}.>")
}

/// Where the groups of a shard go: `fh.log.<region>.<zone>.<shard>`.
pub fn shard_subject(region: &RegionId, zone: &RegionId, shard: u32) -> String {
    format!("{SUBJECT_PREFIX}.{region}.{zone}.{shard}")
}

/// The shard that a subject names.
pub(crate) fn shard_of_subject(subject: &str) -> Option<u32> {
    subject.rsplit('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_made_of_the_region_the_zone_and_the_shard() {
        let (region, zone) = (RegionId::new("eu-west").unwrap(), RegionId::new("eu").unwrap());
        assert_eq!(stream_name(&region), "FH_LOG_EU-WEST");
        assert_eq!(region_subjects(&region), "fh.log.eu-west.>");
        assert_eq!(shard_subject(&region, &zone, 255), "fh.log.eu-west.eu.255");
        assert_eq!(shard_of_subject("fh.log.eu-west.eu.255"), Some(255));
        assert_eq!(shard_of_subject("fh.log.eu-west.eu.x"), None);
    }
}
