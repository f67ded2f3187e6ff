//! Seeded faults over the whole system: crashes, power loss, full disks, dead clients.
