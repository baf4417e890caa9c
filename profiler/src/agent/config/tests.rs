//! Precedence, and one clear message for each mistake.

use std::collections::HashMap;
use std::io::Write;

use super::*;
use crate::probes::health::Tier;
use crate::units::Watts;

fn load(file: &str, env: &[(&str, &str)], flags: PartialConfig) -> Result<Config, String> {
    let mut on_disk = tempfile::Builder::new()
        .prefix("perjoule")
        .suffix(".toml")
        .tempfile()
        .unwrap();
    on_disk.write_all(file.as_bytes()).unwrap();
    let env: HashMap<String, String> = env
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    let path = on_disk.path().to_owned();
    Config::load(Some(&path), |name| env.get(name).cloned(), flags).map_err(|error| {
        error
            .to_string()
            .replace(&path.display().to_string(), "FILE")
    })
}

fn from_file(file: &str) -> Result<Config, String> {
    load(file, &[], PartialConfig::default())
}

fn from_env(env: &[(&str, &str)]) -> Result<Config, String> {
    load("", env, PartialConfig::default())
}

#[test]
fn a_flag_beats_a_variable_beats_the_file_beats_the_default() {
    let file = "model = \"file\"\nsyscalls = true\nlog_level = \"debug\"\n";
    let env = [("PERJOULE_MODEL", "env"), ("PERJOULE_SYSCALLS", "off")];
    let flags = PartialConfig {
        model: Some("flag".to_owned()),
        ..PartialConfig::default()
    };
    let config = load(file, &env, flags).unwrap();
    assert_eq!(config.model.as_deref(), Some("flag"));
    assert!(!config.syscalls);
    assert_eq!(config.log_level, LevelFilter::Debug);
    assert_eq!(config.intervals, Config::default().intervals);
    assert_eq!(
        Config::load(None, |_| None, PartialConfig::default()).unwrap(),
        Config::default()
    );
}

#[test]
fn every_setting_can_stand_in_the_file() {
    let config = from_file(
        r#"
        listen = ["127.0.0.1:9000", "unix:/run/perjoule.sock"]
        web_config_file = "/etc/perjoule/web.yaml"
        nvml_library = "/opt/libnvidia-ml.so.1"
        model = "llama"
        syscalls = true
        tls = true
        request_tier = "raw_tp"
        engine_metrics = false
        usage = false
        trace_ids = true
        log_level = "warn"
        log_format = "json"
        idle_watts = { "GPU-1" = 83, "GPU-2" = 66.5 }
        node_power = "http://pdu/metrics#watts{outlet=\"3\"}"
        ipmi = false
        aliases = "otel"
        series_budget = 5000
        [services]
        pids = [12]
        ports = [8000, 8001]
        names = ["vllm"]
        [calibration]
        "GPU-1" = { slope = 1.02, offset_watts = -3.5 }
        "package-0" = { slope = 0.97, gain_error_ratio = 0.01 }
        [intervals]
        drain_ms = 20
        discover_ms = 2000
        publish_ms = 500
        "#,
    )
    .unwrap();
    let listen = ["127.0.0.1:9000", "unix:/run/perjoule.sock"];
    assert_eq!(
        config.listen,
        Some(listen.map(|at| at.parse().unwrap()).into())
    );
    assert_eq!(
        config.web_config_file,
        Some("/etc/perjoule/web.yaml".into())
    );
    let one = from_file("listen = \":9000\"").unwrap();
    assert_eq!(one.listen, Some(vec![":9000".parse().unwrap()]));
    assert_eq!(config.nvml_library, Some("/opt/libnvidia-ml.so.1".into()));
    assert!(config.tls && !config.engine_metrics);
    assert_eq!(config.request_tier, Some(Tier::RawTp));
    assert_eq!((config.usage, config.trace_ids), (false, true));
    assert_eq!(config.log_format, LogFormat::Json);
    assert_eq!(config.services.pids, [12]);
    assert_eq!(config.services.ports, [8000, 8001]);
    assert_eq!(config.services.names, ["vllm"]);
    assert_eq!(config.idle_watts.of("GPU-1"), Some(Watts(83.0)));
    assert_eq!(config.idle_watts.of("GPU-3"), None);
    let node_power = config.node_power.map(|place| place.to_string());
    assert_eq!(
        node_power.as_deref(),
        Some("http://pdu/metrics#watts{outlet=\"3\"}")
    );
    assert!(!config.ipmi);
    assert_eq!(
        (config.aliases, config.series_budget),
        (Aliases::Otel, 5_000)
    );
    let calibrated: Vec<&String> = config.calibration.keys().collect();
    assert_eq!(calibrated, ["GPU-1", "package-0"]);
    assert_eq!(config.intervals.drain, Duration::from_millis(20));
    assert_eq!(config.intervals.publish, Duration::from_millis(500));
}

#[test]
fn every_setting_can_stand_in_a_variable_and_an_empty_one_is_not_set() {
    let config = from_env(&[
        ("PERJOULE_LISTEN", "[::1]:9000, 127.0.0.1:9000"),
        ("PERJOULE_WEB_CONFIG_FILE", "/etc/perjoule/web.yaml"),
        ("PERJOULE_NVML_LIBRARY", "/opt/nvml.so"),
        ("PERJOULE_MODEL", ""),
        ("PERJOULE_PIDS", "1, 2"),
        ("PERJOULE_PORTS", "8000"),
        ("PERJOULE_NAMES", "vllm,tgi"),
        ("PERJOULE_SYSCALLS", "on"),
        ("PERJOULE_TLS", "on"),
        ("PERJOULE_CUDA", "on"),
        ("PERJOULE_PMC", "on"),
        ("PERJOULE_REQUEST_TIER", "tp_btf"),
        ("PERJOULE_ENGINE_METRICS", "off"),
        ("PERJOULE_USAGE", "off"),
        ("PERJOULE_STACKS", "99"),
        ("PERJOULE_TRACE_IDS", "on"),
        ("PERJOULE_IDLE_WATTS", "83,GPU-2=66"),
        ("PERJOULE_NODE_POWER", "/run/watts"),
        ("PERJOULE_IPMI", "off"),
        ("PERJOULE_LOG_LEVEL", "trace"),
        ("PERJOULE_DRAIN_MS", "100"),
        ("PERJOULE_DISCOVER_MS", "100"),
        ("PERJOULE_PUBLISH_MS", "60000"),
    ])
    .unwrap();
    let listen = ["[::1]:9000", "127.0.0.1:9000"];
    assert_eq!(
        config.listen,
        Some(listen.map(|at| at.parse().unwrap()).into())
    );
    assert_eq!(
        config.web_config_file,
        Some("/etc/perjoule/web.yaml".into())
    );
    assert_eq!(config.nvml_library, Some("/opt/nvml.so".into()));
    assert_eq!(config.model, None);
    assert_eq!(config.services.pids, [1, 2]);
    assert_eq!(config.services.ports, [8000]);
    assert_eq!(config.services.names, ["vllm", "tgi"]);
    assert!(config.syscalls && config.tls && config.cuda && config.pmc);
    assert_eq!(config.stacks, Some(99));
    assert!(!config.engine_metrics);
    assert_eq!(config.request_tier, Some(Tier::TpBtf));
    assert_eq!((config.usage, config.trace_ids), (false, true));
    assert_eq!(config.idle_watts.of("GPU-1"), Some(Watts(83.0)));
    assert_eq!(config.idle_watts.of("GPU-2"), Some(Watts(66.0)));
    assert_eq!(config.node_power, "/run/watts".parse().ok());
    assert!(!config.ipmi);
    assert_eq!(config.log_level, LevelFilter::Trace);
    assert_eq!(config.intervals.drain, Duration::from_millis(100));
    assert_eq!(config.intervals.discover, Duration::from_millis(100));
    assert_eq!(config.intervals.publish, Duration::from_secs(60));
}

#[test]
fn an_unknown_key_is_named_with_its_line_and_the_key_that_was_meant() {
    let said = from_file("model = \"x\"\n\nlisen = \"1.2.3.4:5\"\n").unwrap_err();
    assert_eq!(
        said,
        "FILE, line 3: unknown key `lisen`; did you mean `listen`?"
    );
    let said = from_file("colour = \"red\"\n").unwrap_err();
    assert!(
        said.ends_with("; take it out; docs/configuration.md lists the keys"),
        "{said}"
    );
    let said = from_file("[services]\nport = [1]\n").unwrap_err();
    assert!(
        said.starts_with("FILE, line 2: unknown key `port`"),
        "{said}"
    );
    assert_eq!(said.lines().count(), 1);
}

#[test]
fn a_wrong_value_is_named_with_its_line() {
    for (file, line, reason) in [
        ("listen = \"here\"", 1, "`here` is no socket address"),
        ("listen = [\":1\", \"x\"]", 1, "`x` is no socket address"),
        (
            "listen = 27182",
            1,
            "expected a string or a list of strings",
        ),
        ("\nsyscalls = \"maybe\"", 2, "expected a boolean"),
        ("log_level = \"loud\"", 1, "one of off, error"),
        ("log_format = \"xml\"", 1, "expected `text` or `json`"),
        ("idle_watts = -5", 1, "neither watts nor DEVICE=watts"),
        ("stacks = 0", 1, "0 samples a second are not between"),
        ("node_power = \"https://pdu/\"", 1, "only plain http://"),
        ("[calibration]\nG = { slope = 9 }", 2, "a slope of 9 is no"),
        ("idle_watts = [5]", 1, "a number of watts, or a table"),
        (
            "[intervals]\ndrain_ms = 5",
            2,
            "5 ms is not between 20 and 100 ms",
        ),
        ("[services]\nports = [70000]", 2, "70000"),
        ("[services]\nports = [0]", 2, "nonzero"),
        ("a = = b", 1, ""),
    ] {
        let said = from_file(file).unwrap_err();
        assert!(said.starts_with(&format!("FILE, line {line}: ")), "{said}");
        assert!(said.contains(reason), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}

#[test]
fn a_wrong_variable_is_named() {
    for (variable, value, reason) in [
        ("PERJOULE_LISTEN", "27182", "socket address"),
        ("PERJOULE_PORTS", "80,x", "invalid digit"),
        ("PERJOULE_SYSCALLS", "maybe", "neither on nor off"),
        (
            "PERJOULE_REQUEST_TIER",
            "fentry",
            "no such tier; one of tp_btf,",
        ),
        ("PERJOULE_IDLE_WATTS", "NaN", "`NaN` is neither watts"),
        ("PERJOULE_IDLE_WATTS", "=5", "`=5` is neither watts"),
        ("PERJOULE_PUBLISH_MS", "1", "not between"),
        ("PERJOULE_DRAIN_MS", "1.5", "whole number"),
        ("PERJOULE_STACKS", "5000", "not between 1 and 999"),
        ("PERJOULE_LOG_FORMAT", "xml", "neither text nor json"),
    ] {
        let said = from_env(&[(variable, value)]).unwrap_err();
        assert!(said.starts_with(&format!("{variable}={value}: ")), "{said}");
        assert!(said.contains(reason), "{said}");
        assert!(
            said.ends_with("; correct the variable or unset it"),
            "{said}"
        );
    }
}

#[test]
fn a_file_that_was_named_must_exist() {
    let missing = Path::new("/nonexistent/perjoule.toml");
    let error = Config::load(Some(missing), |_| None, PartialConfig::default()).unwrap_err();
    let said = error.to_string();
    assert!(
        said.starts_with("cannot read /nonexistent/perjoule.toml: No such file"),
        "{said}"
    );
    assert!(said.contains("; correct the path"), "{said}");
}

#[test]
fn repeated_idle_floors_add_up_and_the_later_wins() {
    let floors: IdleWatts = "83".parse().unwrap();
    let floors = floors
        .and("GPU-1=60".parse().unwrap())
        .and("GPU-1=61".parse().unwrap());
    assert_eq!(floors.of("GPU-1"), Some(Watts(61.0)));
    assert_eq!(floors.of("GPU-2"), Some(Watts(83.0)));
}

#[test]
fn every_key_and_variable_is_documented() {
    let sources = include_str!("sources.rs");
    let page = include_str!("../../../../docs/configuration.md");
    let variables = sources.split("\"PERJOULE_").skip(1);
    let variables = variables.filter_map(|rest| rest.split('"').next());
    let mut known = 0;
    for variable in variables {
        known += 1;
        let told = format!("`PERJOULE_{variable}`");
        assert!(page.contains(&told), "docs/configuration.md: {told}");
    }
    let keys = sources.lines().filter_map(|line| {
        let (key, kind) = line.trim().strip_prefix("pub ")?.split_once(": ")?;
        kind.starts_with("Option<").then_some(key)
    });
    for key in keys {
        known += 1;
        let told = [
            format!("| `{key}` |"),
            format!("| `services.{key}` |"),
            format!("| `intervals.{key}` |"),
        ];
        assert!(
            told.iter().any(|told| page.contains(told)),
            "docs/configuration.md: {key}"
        );
    }
    assert!(known > 50, "{known}");
}
