//! The tables behind `cargo xtask layers`. To change the architecture is to change a line here, in review.

/// Who may import whom inside the workspace. A crate that is not listed may not exist.
pub(super) const IMPORTS: &[(&str, &[&str])] = &[
    ("proto", &[]),
    ("events-model", &["proto"]),
    ("events-journal", &["events-model"]),
    ("events-journal-sled", &["events-journal", "events-model"]),
    ("events-journal-nats", &["events-journal", "events-journal-sled", "events-model", "proto"]),
    ("actors-core", &["events-model"]),
    ("actors-shell", &["actors-core", "events-journal", "events-model"]),
    ("gateway", &["actors-core", "events-model"]),
    ("projections", &["events-journal", "events-model"]),
    ("projections-sql", &["events-journal", "events-model", "projections"]),
    ("replay", &["actors-core", "events-journal", "events-model", "projections"]),
    (
        "server",
        &[
            "actors-core",
            "actors-shell",
            "events-journal",
            "events-journal-nats",
            "events-journal-sled",
            "events-model",
            "gateway",
            "projections",
            "projections-sql",
            "proto",
            "replay",
        ],
    ),
    ("tests-kit", &["actors-core", "events-model"]),
    (
        "tests-chaos",
        &[
            "actors-core",
            "actors-shell",
            "events-journal",
            "events-journal-nats",
            "events-journal-sled",
            "events-model",
            "gateway",
            "projections",
            "projections-sql",
            "proto",
            "replay",
            "server",
            "tests-kit",
        ],
    ),
    ("xtask", &[]),
];

/// The crate with fixtures: a dev-dependency of everybody below, a dependency of `tests-chaos` alone.
pub(super) const TEST_KIT: &str = "tests-kit";

/// Crates without clock, randomness, I/O, async, hashing containers, logging or global state.
pub(super) const PURE: &[&str] = &["actors-core", "events-model"];

/// Third-party crates a pure crate may depend on (its tests may use more).
///
/// `cel` (expressions), `serde-saphyr` (YAML with places) and `serde_json` (values) are for the definitions of sagas:
/// texts in, values out; features with a clock or regular expressions stay off.
pub(super) const PURE_THIRD_PARTY: &[&str] =
    &["cel", "chrono", "prost", "serde", "serde-saphyr", "serde_json", "thiserror", "uuid"];

/// Features that would bring a clock or randomness into a pure crate.
pub(super) const IMPURE_FEATURES: &[(&str, &str)] =
    &[("cel", "chrono"), ("chrono", "clock"), ("chrono", "now"), ("uuid", "fast-rng"), ("uuid", "v4")];

/// Crates whose manifest need not say `[lints] workspace = true`: generated code.
pub(super) const LINTS_OPT_OUT: &[&str] = &["proto"];

/// The feature of `proto` with the API; without it there are only stored messages.
pub(super) const API_FEATURE: (&str, &str) = ("proto", "api");
/// Who may switch it on.
pub(super) const API_USERS: &[&str] = &["server", "tests-chaos"];

/// A dependency that only some crates may have, in any kind of dependency.
#[derive(Debug)]
pub(super) struct Fence {
    /// The crate itself and, where `family` is set, all whose names begin with it and `-`.
    pub(super) name: &'static str,
    pub(super) family: bool,
    pub(super) inside: &'static [&'static str],
    pub(super) why: &'static str,
}

/// All fences.
pub(super) const FENCES: &[Fence] = &[
    // `tonic-prost-build` is a code generator and no server: it comes before the family it would belong to.
    Fence {
        name: "tonic-prost-build",
        family: false,
        inside: &["xtask"],
        why: "generated code is committed, so an ordinary build compiles no protobuf compiler",
    },
    Fence {
        name: "actix",
        family: true,
        inside: &["actors-shell"],
        why: "the actor framework stays at the rim, so that it can be replaced",
    },
    Fence {
        name: "tonic",
        family: true,
        inside: &["projections-sql", "proto", "server"],
        why: "gRPC is a surface; the inside does not know it",
    },
    Fence {
        name: "datafusion",
        family: true,
        inside: &["projections-sql"],
        why: "it is heavy to compile and only SQL needs it",
    },
    Fence {
        name: "cel",
        family: false,
        inside: &["actors-core"],
        why: "expressions are evaluated where they are metered",
    },
    Fence {
        name: "serde-saphyr",
        family: false,
        inside: &["actors-core"],
        why: "definitions are read in one place, with their bounds",
    },
    Fence {
        name: "sled",
        family: false,
        inside: &["events-journal-sled"],
        why: "only the adapter knows its storage engine",
    },
    Fence {
        name: "async-nats",
        family: false,
        inside: &["events-journal-nats"],
        why: "only the adapter knows its broker",
    },
    Fence { name: "clap", family: true, inside: &["server", "xtask"], why: "only binaries have a command line" },
];

/// Lints a pure crate switches on at the top of its `lib.rs`.
pub(super) const NUMERIC_LINTS: &[&str] = &[
    "arithmetic_side_effects",
    "cast_lossless",
    "cast_possible_truncation",
    "cast_possible_wrap",
    "cast_sign_loss",
    "float_cmp",
    "indexing_slicing",
];

/// Names that may not occur in a pure crate, whatever they are part of.
pub(super) const IMPURE_NAMES: &[(&str, &str)] = &[
    ("Instant", "a clock"),
    ("SystemTime", "a clock"),
    ("now_v1", "a clock"),
    ("now_v7", "a clock and randomness"),
    ("new_v4", "randomness"),
    ("rand", "randomness"),
    ("getrandom", "randomness"),
    ("RandomState", "randomness"),
    ("HashMap", "an order that differs between runs"),
    ("HashSet", "an order that differs between runs"),
    ("async", "a runtime"),
    ("await", "a runtime"),
    ("tracing", "logging"),
    ("LazyLock", "global state"),
    ("OnceLock", "global state"),
    ("OnceCell", "global state"),
    ("thread_local", "global state"),
    ("lazy_static", "global state"),
    ("Mutex", "shared state"),
    ("RwLock", "shared state"),
];

/// Names that may occur in one file of a pure crate all the same: file, name, why.
pub(super) const IMPURE_ALLOWED: &[(&str, &str, &str)] = &[(
    "actors/core/src/saga/meter.rs",
    "AtomicU64",
    "`cel` wants the functions it calls `Sync`; the counter lives for one evaluation in one thread",
)];

/// Modules of `std` that may not occur in a pure crate.
pub(super) const IMPURE_STD: &[(&str, &str)] = &[
    ("env", "the environment"),
    ("fs", "I/O"),
    ("io", "I/O"),
    ("net", "I/O"),
    ("process", "the operating system"),
    ("thread", "threads"),
];

/// Macros that may not occur in a pure crate.
pub(super) const IMPURE_MACROS: &[&str] =
    &["debug", "eprint", "eprintln", "error", "info", "print", "println", "trace", "warn"];
