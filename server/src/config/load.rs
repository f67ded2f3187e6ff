//! Layers: defaults, file, environment, flags; each value remembers where it came from.

use std::{
    collections::BTreeMap,
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use events_model::RegionId;
use toml::{
    Table, Value,
    de::{DeTable, DeValue},
};

use super::{
    Config, Environment, LogFormat,
    check::{self, Fault},
    environment,
    error::{Error, Place},
    limit::FILE_BYTES_MAX,
};

/// The file that is read from the working directory when none is named.
pub const FILE_NAME: &str = "freehold.toml";

/// What the command line says; absent = the layers below decide.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args)]
pub struct Flags {
    /// Configuration file; freehold.toml of the working directory is read when there is one
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Data directory
    #[arg(long, global = true, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Address of the gRPC listener; port 0 chooses a free one
    #[arg(skip)]
    pub grpc_listen: Option<SocketAddr>,
    /// Address of the HTTP listener; port 0 chooses a free one
    #[arg(skip)]
    pub http_listen: Option<SocketAddr>,
    /// Addresses of NATS servers
    #[arg(skip)]
    pub nats: Option<String>,
    /// Name of this node
    #[arg(skip)]
    pub node: Option<String>,
    /// The region
    #[arg(skip)]
    pub region: Option<RegionId>,
    /// Form of log lines
    #[arg(skip)]
    pub log_format: Option<LogFormat>,
    /// Levels of log lines
    #[arg(skip)]
    pub log_filter: Option<String>,
}

/// Builds the configuration from all layers and checks it.
///
/// # Errors
/// The named file cannot be read; a key is unknown; a value is outside what its key allows.
pub fn load(flags: &Flags, environment: &Environment) -> Result<Config, Error> {
    let named = flags.config.clone().or_else(|| environment.get(environment::CONFIG).map(PathBuf::from));
    let file = File::read(named)?;
    let mut layers = Table::new();
    if let Some(file) = &file {
        layers = file.parse()?;
    }
    let variables = overlay_environment(&mut layers, environment)?;
    let place = |key: &str| match (variables.get(key), &file) {
        (Some(name), _) => Place::Variable(name.clone()),
        (None, Some(file)) => Place::File { path: file.path.clone(), line: file.line_of(key) },
        (None, None) => Place::Default,
    };
    let invalid = |key: Option<String>, reason: String| {
        let place = place(key.as_deref().unwrap_or_default());
        Error::Invalid { place, key, reason }
    };
    // Both layers were read by themselves before, so this cannot fail; if it does, it says so.
    let mut config: Config =
        Value::Table(layers).try_into().map_err(|error: toml::de::Error| invalid(None, error.message().to_owned()))?;
    overlay_flags(&mut config, flags);
    match check::first_fault(&config) {
        Some(Fault { key, reason }) => Err(invalid(Some(key), reason)),
        None => Ok(config),
    }
}

fn overlay_flags(config: &mut Config, flags: &Flags) {
    let Flags { config: _, data, grpc_listen, http_listen, nats, node, region, log_format, log_filter } = flags;
    config.cluster.nats = nats.clone().unwrap_or_else(|| config.cluster.nats.clone());
    config.cluster.node = node.clone().unwrap_or_else(|| config.cluster.node.clone());
    config.region = region.clone().unwrap_or_else(|| config.region.clone());
    config.data = data.clone().unwrap_or_else(|| config.data.clone());
    config.grpc.listen = grpc_listen.unwrap_or(config.grpc.listen);
    config.http.listen = http_listen.unwrap_or(config.http.listen);
    config.telemetry.format = log_format.unwrap_or(config.telemetry.format);
    if let Some(filter) = log_filter {
        config.telemetry.filter.clone_from(filter);
    }
}

/// Lays the variables over the file; returns which key came from which variable.
fn overlay_environment(layers: &mut Table, environment: &Environment) -> Result<BTreeMap<String, String>, Error> {
    let known = Table::try_from(Config::default()).unwrap_or_default();
    let mut origins = BTreeMap::new();
    for (variable, name, text) in environment.keys() {
        let Some((section, key, default)) = find(&known, &name) else {
            if named_as_key(layers, variable) {
                continue;
            }
            let reason = format!("this variable is not known; allowed are {}", variables(&known).join(", "));
            return Err(Error::Invalid { place: Place::Variable(variable.to_owned()), key: None, reason });
        };
        let value = match default {
            Value::Integer(_) => text.parse().map_or_else(|_| Value::String(text.to_owned()), Value::Integer),
            Value::String(_)
            | Value::Float(_)
            | Value::Boolean(_)
            | Value::Datetime(_)
            | Value::Array(_)
            | Value::Table(_) => Value::String(text.to_owned()),
        };
        let path = section.map_or_else(|| key.to_owned(), |section| format!("{section}.{key}"));
        let mut alone = Table::new();
        for table in [&mut alone, &mut *layers] {
            put(table, section, key, value.clone());
        }
        if let Err(error) = Config::try_from_table(alone) {
            let (place, reason) = (Place::Variable(variable.to_owned()), error.message().to_owned());
            return Err(Error::Invalid { place, key: Some(path), reason });
        }
        origins.insert(path, variable.to_owned());
    }
    Ok(origins)
}

impl Config {
    fn try_from_table(table: Table) -> Result<Self, toml::de::Error> {
        Value::Table(table).try_into()
    }
}

/// Whether an upstream takes its key, or the cluster its password or secret, from this variable.
fn named_as_key(layers: &Table, variable: &str) -> bool {
    let cluster = |key| layers.get("cluster").and_then(|cluster| cluster.get(key)).and_then(Value::as_str);
    if [cluster("password_env"), cluster("secret_env")].contains(&Some(variable)) {
        return true;
    }
    let upstreams = layers.get("upstreams").and_then(Value::as_array);
    let names = |upstream: &Value| upstream.get("api_key_env").and_then(Value::as_str) == Some(variable);
    upstreams.is_some_and(|upstreams| upstreams.iter().any(names))
}

/// Finds `grpc_listen` as `listen` in the section `grpc`: names of sections have no underscore.
fn find<'a>(known: &'a Table, name: &str) -> Option<(Option<&'a str>, &'a str, &'a Value)> {
    let leaf = |table: &'a Table, key: &str| {
        let (key, value) = table.get_key_value(key)?;
        (!value.is_table()).then_some((key.as_str(), value))
    };
    if let Some((key, value)) = leaf(known, name) {
        return Some((None, key, value));
    }
    let (section, key) = name.split_once('_')?;
    let (section, table) = known.get_key_value(section)?;
    let (key, value) = leaf(table.as_table()?, key)?;
    Some((Some(section), key, value))
}

/// Every variable that is a key of the file.
fn variables(known: &Table) -> Vec<String> {
    let mut names = Vec::new();
    for (key, value) in known {
        match value.as_table() {
            Some(section) => names.extend(section.keys().map(|inner| format!("{key}_{inner}"))),
            None => names.push(key.clone()),
        }
    }
    names.iter().map(|name| format!("FREEHOLD_{}", name.to_uppercase())).collect()
}

fn put(table: &mut Table, section: Option<&str>, key: &str, value: Value) {
    match section {
        None => drop(table.insert(key.to_owned(), value)),
        Some(section) => {
            let inner = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
            if let Some(inner) = inner.as_table_mut() {
                drop(inner.insert(key.to_owned(), value));
            }
        }
    }
}

/// A configuration file as it lies on the disk.
struct File {
    path: PathBuf,
    text: String,
}

impl File {
    /// Reads the named file, or the one of the working directory if there is one.
    fn read(named: Option<PathBuf>) -> Result<Option<Self>, Error> {
        let (path, must) = named.map_or_else(|| (PathBuf::from(FILE_NAME), false), |path| (path, true));
        match read_bounded(&path) {
            Ok(text) => Ok(Some(Self { path, text })),
            Err(source) if !must && source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::Read { path, source }),
        }
    }

    /// Checks the form of the file by itself, so that errors name its lines.
    fn parse(&self) -> Result<Table, Error> {
        let invalid = |error: &toml::de::Error| {
            let line = error.span().map(|span| line_at(&self.text, span.start));
            let key = error.span().and_then(|span| self.key_at(span.start));
            let place = Place::File { path: self.path.clone(), line };
            Error::Invalid { place, key, reason: error.message().trim_end().replace('\n', "; ") }
        };
        toml::from_str::<Config>(&self.text).map_err(|error| invalid(&error))?;
        toml::from_str(&self.text).map_err(|error| invalid(&error))
    }

    /// The key whose value holds this byte.
    fn key_at(&self, offset: usize) -> Option<String> {
        let document = DeTable::parse(&self.text).ok()?;
        key_in_table(document.get_ref(), offset)
    }

    /// The line of `http.listen` or `upstreams[1].models[0].name`, or of the nearest table around it.
    fn line_of(&self, key: &str) -> Option<usize> {
        let document = DeTable::parse(&self.text).ok()?;
        let mut table = Some(document.get_ref());
        let mut found = None;
        for step in key.split('.') {
            let (name, index) = match step.split_once('[') {
                Some((name, rest)) => (name, rest.trim_end_matches(']').parse::<usize>().ok()),
                None => (step, None),
            };
            let Some((key, mut value)) = table.and_then(|table| table.iter().find(|(key, _)| key.get_ref() == name))
            else {
                break;
            };
            found = Some(key.span().start);
            if let Some(item) = index.and_then(|index| value.get_ref().get(index)) {
                value = item;
                found = Some(item.span().start);
            }
            table = value.get_ref().as_table();
        }
        found.map(|offset| line_at(&self.text, offset))
    }
}

fn key_in_table(table: &DeTable<'_>, offset: usize) -> Option<String> {
    table.iter().find_map(|(key, value)| {
        if key.span().contains(&offset) {
            return Some(key.get_ref().to_string());
        }
        let inner = key_in_value(value.get_ref(), value.span().contains(&offset), offset)?;
        Some(if inner.is_empty() || inner.starts_with('[') {
            format!("{}{inner}", key.get_ref())
        } else {
            format!("{}.{inner}", key.get_ref())
        })
    })
}

/// What follows the key: nothing for a plain value, a path for a table or an array.
fn key_in_value(value: &DeValue<'_>, here: bool, offset: usize) -> Option<String> {
    let inner = if let Some(table) = value.as_table() {
        key_in_table(table, offset)
    } else if let Some(array) = value.as_array() {
        array.iter().enumerate().find_map(|(index, item)| {
            let inner = key_in_value(item.get_ref(), item.span().contains(&offset), offset)?;
            Some(if inner.is_empty() { format!("[{index}]") } else { format!("[{index}].{inner}") })
        })
    } else {
        None
    };
    inner.or_else(|| here.then(String::new))
}

fn line_at(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count()
}

fn read_bounded(path: &Path) -> io::Result<String> {
    if fs::metadata(path)?.len() > FILE_BYTES_MAX {
        return Err(io::Error::other("it is larger than 4 MiB"));
    }
    fs::read_to_string(path)
}
