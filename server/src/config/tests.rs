//! What the layers give, and what errors say.

use std::fs;

use super::*;

fn flags(config: &str) -> (tempfile::TempDir, Flags) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("freehold.toml");
    fs::write(&path, config).unwrap();
    (directory, Flags { config: Some(path), ..Flags::default() })
}

fn environment(pairs: &[(&str, &str)]) -> Environment {
    Environment::from_pairs(pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())))
}

fn load_text(config: &str) -> Result<Config, Error> {
    let (_directory, flags) = flags(config);
    load(&flags, &Environment::default())
}

/// What the error says, without the directory of the file.
fn error(config: &str) -> String {
    let text = load_text(config).unwrap_err().to_string();
    text.find("freehold.toml").map_or(text.clone(), |at| text[at..].to_owned())
}

const UPSTREAM: &str = r#"
[[upstreams]]
name = "sim"
base_url = "http://127.0.0.1:1/v1"
[[upstreams.models]]
name = "m"
input_usd_per_mtok = "0.15"
output_usd_per_mtok = "0.6"
"#;

#[test]
fn later_layers_win_over_earlier_ones() {
    let (_directory, mut flags) = flags("data = \"file\"\nzone = \"file\"\n[http]\nconnections_max = 5\n");
    let environment = environment(&[
        ("FREEHOLD_ZONE", "variable"),
        ("FREEHOLD_DATA", "variable"),
        ("FREEHOLD_HTTP_BODY_BYTES_MAX", "1MiB"),
        ("FREEHOLD_ACTORS_ARBITERS", "3"),
    ]);
    flags.data = Some("flag".into());
    let config = load(&flags, &environment).unwrap();
    assert_eq!((config.data.to_str(), config.zone.as_str()), (Some("flag"), "variable"));
    assert_eq!((config.http.connections_max, config.http.body_bytes_max), (5, 1 << 20));
    assert_eq!((config.actors.arbiters, config.log), (3, Log::default()));
}

#[test]
fn the_default_configuration_is_valid_and_reads_back_from_its_dump() {
    assert_eq!(load_text("").unwrap(), Config::default());
    assert_eq!(load_text(&Config::default().to_toml().unwrap()).unwrap(), Config::default());
    let config = load_text(UPSTREAM).unwrap();
    assert_eq!(load_text(&config.to_toml().unwrap()).unwrap(), config);
}

#[test]
fn the_example_names_every_key_and_says_its_default() {
    let example = include_str!("../../../deploy/freehold.example.toml");
    let config = load_text(example).unwrap();
    assert_eq!(Config { upstreams: Vec::new(), ..config.clone() }, Config::default());
    // With every commented key in force it says the same, apart from what has no default.
    let full: Vec<_> = example
        .lines()
        .map(|line| {
            line.strip_prefix('#').filter(|rest| rest.starts_with(|c: char| c.is_ascii_lowercase())).unwrap_or(line)
        })
        .filter(|line| !line.starts_with("api_key_file"))
        .collect();
    let mut full = load_text(&full.join("\n")).unwrap();
    let dumped = full.to_toml().unwrap();
    let cluster = &mut full.cluster;
    for file in
        [&mut cluster.password_file, &mut cluster.secret_file, &mut cluster.credentials_file, &mut cluster.ca_file]
    {
        assert!(file.take().is_some());
    }
    for upstream in &mut full.upstreams {
        assert!(upstream.usage_lookup_path.take().is_some() && upstream.ca_file.take().is_some());
        for model in &mut upstream.models {
            assert!(model.upstream_model.take().is_some());
        }
    }
    assert_eq!(full, config);
    for line in dumped.lines().filter_map(|line| line.split_once(" = ")) {
        assert!(example.contains(&format!("{} = ", line.0)), "the example lacks {}", line.0);
    }
}

#[test]
fn an_unknown_key_is_an_error_with_its_line_and_what_is_allowed() {
    let text = error("data = \"x\"\n[http]\nlissten = \"127.0.0.1:1\"\n");
    assert!(
        text.starts_with("freehold.toml, line 3: http.lissten: unknown field `lissten`, expected one of"),
        "{text}"
    );
    assert!(text.contains("`body_bytes_max`"), "{text}");
    assert!(error("[nonsense]\n").contains("line 1: nonsense: unknown field"));
}

#[test]
fn a_value_of_the_wrong_form_names_key_line_and_form() {
    let text = error("\n[http]\nheader_timeout = \"10\"\n");
    assert!(text.starts_with("freehold.toml, line 3: http.header_timeout: \"10\" is not a duration such as"), "{text}");
    let text = error(&UPSTREAM.replace("\"0.15\"", "0.15"));
    assert!(text.contains("line 7: upstreams[0].models[0].input_usd_per_mtok: invalid type: floating point"), "{text}");
    assert!(text.contains("an amount of US dollars in quotes"), "{text}");
    assert!(error("[grpc]\nlisten = \"nowhere\"\n").contains("line 2: grpc.listen: "));
    assert!(error("a b c").contains("line 1"));
}

#[test]
fn a_node_that_listens_where_others_do_not_reach_it_must_say_where_they_do() {
    let node = |grpc: &str| format!("[cluster]\nnats = \"nats://h:4222\"\nnode = \"a\"\n[grpc]\n{grpc}");
    let everywhere = "listen = \"0.0.0.0:7600\"\n";
    assert!(load_text(everywhere.replace("listen", "[grpc]\nlisten").as_str()).is_ok());
    assert!(load_text(&node("listen = \"10.0.0.1:7600\"\n")).is_ok());
    assert!(error(&node(everywhere)).contains("grpc.advertise: grpc.listen is 0.0.0.0:7600, which tells other nodes"));
    // The default is reached from this machine alone, and that is enough if all servers are here.
    assert!(error(&node("")).contains("grpc.advertise: grpc.listen is 127.0.0.1:7600, which on other machines is"));
    for (servers, is_good) in [
        ("nats://127.0.0.1:4222", true),
        ("nats://localhost, tls://[::1]:4222", true),
        ("nats://127.0.0.1:4222,nats://h:4222", false),
    ] {
        assert_eq!(load_text(&node("").replace("nats://h:4222", servers)).is_ok(), is_good, "{servers}");
    }
    assert!(load_text(&node("advertise = \"node-1:7600\"\n")).is_ok());
    for (advertise, is_good) in [
        ("node-1:7600", true),
        ("[::1]:7600", true),
        ("node-1", false),
        ("a:0", false),
        ("u@a:1", false),
        ("a b:1", false),
    ] {
        let text = node(&format!("{everywhere}advertise = \"{advertise}\"\n"));
        assert_eq!(load_text(&text).is_ok(), is_good, "{advertise}");
    }
}

#[test]
fn values_out_of_range_say_the_range() {
    let text = error("[http]\nlisten = \"127.0.0.1:1\"\nbody_bytes_max = \"1GiB\"\n");
    let expected = "freehold.toml, line 3: http.body_bytes_max: 1GiB is out of range; allowed is 1KiB to 64MiB";
    assert_eq!(text, expected);
    for (old, new, says) in [
        ("name = \"sim\"", "name = \"Sim\"", "line 3: upstreams[0].name: \"Sim\" must be"),
        ("http://127.0.0.1:1/v1", "ftp://host", "must begin with http:// or https://"),
        ("http://127.0.0.1:1/v1", "host", "needs a scheme and a host"),
        ("http://127.0.0.1:1/v1", "http://host/?a=b", "must not have a query"),
        ("\"0.6\"", "\"-1\"", "is not an amount of US dollars"),
        ("\"0.6\"", "\"1000000.000000001\"", "out of range; allowed is 0.00 to 1000000.00"),
        ("name = \"m\"", "name = \"m m\"", "must be 1 to 128 visible ASCII characters"),
        ("name = \"m\"", "name = \"m\"\ncompletion_tokens_max = 10", "completion_tokens_default: 1024 is out of range"),
        ("name = \"sim\"", "name = \"sim\"\nusage_lookup_path = \"/x\"", "must begin with / and contain {request_id}"),
        ("name = \"sim\"", "name = \"sim\"\nca_file = \"x\"", "base_url is not https"),
        (
            "name = \"sim\"",
            "name = \"sim\"\nmax_tokens_parameter = \"n\"",
            "is not max_tokens or max_completion_tokens",
        ),
        ("name = \"sim\"", "name = \"sim\"\napi_key_env = \"A\"\napi_key_file = \"b\"", "one of them is enough"),
    ] {
        let text = error(&UPSTREAM.replace(old, new));
        assert!(text.contains(says), "{new}: {text}");
    }
}

#[test]
fn names_are_unique_and_credentials_are_not_repeated() {
    assert!(error(&UPSTREAM.repeat(2)).contains("line 11: upstreams[1].name: there are two upstreams \"sim\""));
    let model = UPSTREAM.split_once("[[upstreams.models]]").unwrap().1;
    let text = error(&format!("{UPSTREAM}[[upstreams.models]]{model}"));
    assert!(text.contains("upstreams[0].models[1].name: this upstream has two models \"m\""), "{text}");
    let text = error(&UPSTREAM.replace("http://127", "http://user:hunter2@127"));
    assert!(text.contains("holds credentials") && !text.contains("hunter2"), "{text}");
}

#[test]
fn variables_are_checked_like_keys_and_named_in_errors() {
    let fails = |pairs: &[(&str, &str)]| {
        let (_directory, flags) = flags("");
        load(&flags, &environment(pairs)).unwrap_err().to_string()
    };
    let text = fails(&[("FREEHOLD_HTTP_LISSTEN", "x")]);
    assert!(text.starts_with("environment variable FREEHOLD_HTTP_LISSTEN: this variable is not known"), "{text}");
    assert!(text.contains("FREEHOLD_HTTP_LISTEN"), "{text}");
    let text = fails(&[("FREEHOLD_HTTP_CONNECTIONS_MAX", "many")]);
    assert!(text.starts_with("environment variable FREEHOLD_HTTP_CONNECTIONS_MAX: http.connections_max: "), "{text}");
    let text = fails(&[("FREEHOLD_HTTP_CONNECTIONS_MAX", "0")]);
    assert!(text.contains("http.connections_max: 0 is out of range; allowed is 1 to 1000000"), "{text}");
}

#[test]
fn variables_of_orchestrators_and_of_upstream_keys_are_left_alone() {
    let upstream = UPSTREAM.replace("name = \"sim\"", "name = \"sim\"\napi_key_env = \"FREEHOLD_SIM_KEY\"");
    let (_directory, flags) = flags(&format!("[cluster]\npassword_env = \"FREEHOLD_OUR_NATS\"\n{upstream}"));
    let variables = [
        ("FREEHOLD_OUR_NATS", "hunter1"),
        ("FREEHOLD_SERVICE_HOST", "10.0.0.1"),
        ("FREEHOLD_PORT_7600_TCP", "tcp://10.0.0.1:7600"),
        ("FREEHOLD_SIM_KEY", "hunter2"),
        ("FREEHOLD_ADMIN_TOKEN", "hunter3"),
        ("FREEHOLD_SERVER", "http://127.0.0.1:7600"),
        ("OTHER", "x"),
    ];
    let environment = environment(&variables);
    let config = load(&flags, &environment).unwrap();
    let shown = format!("{}{environment:?}{config:?}{:?}", config.to_toml().unwrap(), environment.admin_token());
    assert!(shown.contains("FREEHOLD_SIM_KEY") && !shown.contains("hunter"), "{shown}");
}

#[test]
fn the_servers_of_a_cluster_are_addresses_without_credentials_and_its_nodes_have_names() {
    const NODE: &str =
        "[cluster]\nnats = \"nats://one:4222, tls://two:4222\"\nnode = \"n-1\"\n[grpc]\nadvertise = \"n-1:7600\"\n";
    let config = load_text(NODE).unwrap();
    assert!(config.cluster.is_on());
    assert_eq!(load_text(&config.to_toml().unwrap()).unwrap(), config);
    for (old, new, says) in [
        ("nats://one", "http://one", "line 2: cluster.nats: http://one:4222 is no address; it looks like nats://"),
        ("nats://one", "nats://fh:hunter2@one", "the address holds credentials; use password_file"),
        ("n-1", "n 1", "line 3: cluster.node: \"n 1\" is no name"),
        ("\"n-1\"", "\"\"", "1 to 64 letters, digits, - and _ are needed"),
        ("\"n-1\"", "\"a\"\nreplicas = 2", "2 is not possible; allowed are 1, 3 and 5"),
        ("\"n-1\"", "\"a\"\nshards = 0", "0 is out of range; allowed is 1 to 4096"),
        ("\"n-1\"", "\"a\"\nlease = \"2m\"", "is out of range; allowed is 500ms to 1m"),
        ("\"n-1\"", "\"a\"\npassword_file = \"a\"\ncredentials_file = \"b\"", "one of them is enough"),
    ] {
        let text = error(&NODE.replace(old, new));
        assert!(text.contains(says) && !text.contains("hunter2"), "{new}: {text}");
    }
}

#[test]
fn the_password_of_nats_is_read_from_its_file_and_never_shown() {
    let (directory, _) = flags("");
    let path = directory.path().join("password");
    let password_env = "FREEHOLD_TEST_NO_SUCH_VARIABLE".to_owned();
    let mut cluster = Cluster { password_env, ..Cluster::default() };
    assert_eq!(cluster.read_password().unwrap(), None);
    cluster.password_file = Some(path.clone());
    let text = cluster.read_password().unwrap_err().to_string();
    assert!(text.ends_with("password, which holds the password of NATS"), "{text}");
    fs::write(&path, "hunter 2\n").unwrap();
    assert_eq!(cluster.read_password().unwrap().unwrap().expose(), "hunter 2");
    for wrong in ["\n", "hunter\u{1b}2"] {
        fs::write(&path, wrong).unwrap();
        let text = cluster.read_password().unwrap_err().to_string();
        assert!(text.starts_with("the password of NATS in ") && !text.contains("hunter"), "{text}");
    }
}

#[test]
fn a_named_file_must_be_there_and_an_unnamed_one_need_not() {
    let missing = Flags { config: Some("no-such-file.toml".into()), ..Flags::default() };
    assert_eq!(
        load(&missing, &Environment::default()).unwrap_err().to_string(),
        "read configuration file no-such-file.toml"
    );
    assert!(load(&Flags::default(), &Environment::default()).is_ok());
}

#[test]
fn keys_of_upstreams_are_read_from_files_and_never_shown() {
    let (directory, _) = flags("");
    let path = directory.path().join("key");
    let mut upstream = load_text(UPSTREAM).unwrap().upstreams.remove(0);
    assert_eq!(upstream.read_api_key().unwrap(), None);
    upstream.api_key_file = Some(path.clone());
    assert!(upstream.read_api_key().unwrap_err().to_string().contains("holds the key of upstream sim"));
    fs::write(&path, "hunter2\n").unwrap();
    let key = upstream.read_api_key().unwrap().unwrap();
    assert_eq!((key.expose(), format!("{key:?}").as_str()), ("hunter2", "***"));
    fs::write(&path, "hunter 2").unwrap();
    assert!(!upstream.read_api_key().unwrap_err().to_string().contains("hunter"));
    upstream.api_key_file = None;
    upstream.api_key_env = Some("FREEHOLD_TEST_NO_SUCH_VARIABLE".to_owned());
    assert!(upstream.read_api_key().unwrap_err().to_string().contains("FREEHOLD_TEST_NO_SUCH_VARIABLE"));
}
