//! Goal: the strongest place wins, each value knows where it came from, and an error names the
//! option. Method: everything around the process is a temporary directory.

use std::path::{Path, PathBuf};

use super::*;

struct Home {
    dir: tempfile::TempDir,
    sources: Sources,
}

impl Home {
    /// A user with a home directory in which nothing is configured but a worker's and a
    /// coordinator's identity.
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let at = |path: &str| dir.path().join(path);
        let surroundings = Surroundings {
            variables: [("HOME".into(), at("home").into())].into(),
            root: false,
            etc: at("etc"),
            run: at("run"),
            var: at("var"),
        };
        let sources = Sources {
            flags: Options::default(),
            file: None,
            surroundings,
        };
        let mut home = Self { dir, sources };
        home.write("etc/certs/worker/cert.pem", "");
        home.write("etc/certs/coordinator/cert.pem", "");
        home.flag(Field::Coordinators, "c1:7457");
        home
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn write(&self, path: &str, text: &str) -> PathBuf {
        let path = self.path(path);
        let parent = path.parent().expect("a file in a directory");
        std::fs::create_dir_all(parent).expect("writable");
        std::fs::write(&path, text).expect("writable");
        path
    }

    fn flag(&mut self, field: Field, value: &str) -> &mut Self {
        if field.kinds().contains(&Kind::Worker) {
            self.sources.flags.set(field, Some(value));
        }
        self
    }

    fn variable(&mut self, name: &str, value: impl AsRef<std::ffi::OsStr>) -> &mut Self {
        let variables = &mut self.sources.surroundings.variables;
        variables.insert(name.into(), value.as_ref().into());
        self
    }

    fn worker(&self) -> Result<Loaded<WorkerConfig>, ConfigError> {
        WorkerConfig::load(&self.sources)
    }

    fn error(&self) -> String {
        self.worker().expect_err("refused").to_string()
    }

    fn origin(&self, field: Field) -> String {
        let effective = self.worker().expect("good").effective;
        let entry = effective.iter().find(|entry| entry.field == field);
        entry.expect("every field is reported").origin.to_string()
    }
}

#[test]
fn a_flag_wins_over_a_variable_over_the_users_file_over_the_systems_over_the_default() {
    let mut home = Home::new();
    let deadline = |home: &Home| home.worker().expect("good").config.deadline.as_millis();
    assert_eq!(deadline(&home), 10_000);
    assert_eq!(home.origin(Field::Deadline), "default");

    let system = home.write("etc/larder.yaml", "deadline: 1s\n");
    assert_eq!(deadline(&home), 1_000);
    assert_eq!(
        home.origin(Field::Deadline),
        format!("file {}", system.display())
    );

    home.write("home/.config/larder/larder.yaml", "deadline: 2s\n");
    assert_eq!(deadline(&home), 2_000);

    home.write(
        "home/.config/larder/larder.yaml",
        "deadline: 2s\nworker: {deadline: 3s}\n",
    );
    assert_eq!(deadline(&home), 3_000);

    home.variable("LARDER_DEADLINE", "4s");
    assert_eq!(deadline(&home), 4_000);
    assert_eq!(home.origin(Field::Deadline), "environment LARDER_DEADLINE");

    home.flag(Field::Deadline, "5s");
    assert_eq!(deadline(&home), 5_000);
    assert_eq!(home.origin(Field::Deadline), "flag --deadline");
}

#[test]
fn a_named_file_is_read_instead_of_the_usual_ones_and_must_exist() {
    let mut home = Home::new();
    home.write("etc/larder.yaml", "deadline: 1s\nstore_budget: 64MiB\n");
    home.sources.file = Some(home.write("other/mine.yaml", "store: cache\n"));
    let config = home.worker().expect("good").config;
    assert_eq!(config.deadline.as_secs(), 10);
    // A relative path starts at its file.
    assert_eq!(
        config.store,
        StoreChoice::Directory(home.path("other/cache"))
    );

    home.sources.file = Some(home.path("missing.yaml"));
    assert!(matches!(home.worker(), Err(ConfigError::Read { .. })));

    home.sources.file = None;
    home.variable("LARDER_CONFIG", home.path("other/mine.yaml"));
    assert_eq!(home.worker().expect("good").config.deadline.as_secs(), 10);
}

#[test]
fn defaults_depend_on_who_runs() {
    let mut home = Home::new();
    let config = home.worker().expect("good").config;
    assert_eq!(
        config.store,
        StoreChoice::Directory(home.path("home/.local/state/larder/worker"))
    );
    assert_eq!(
        config.local.socket,
        home.path("home/.local/state/larder/worker.sock")
    );
    assert!(config.listen.ip().is_loopback());
    assert_eq!(config.identity.cert, home.path("etc/certs/worker/cert.pem"));
    assert_eq!(config.identity.head_key, None);

    home.variable("XDG_RUNTIME_DIR", home.path("user"));
    let config = home.worker().expect("good").config;
    assert_eq!(config.local.socket, home.path("user/larder/worker.sock"));

    home.sources.surroundings.root = true;
    let config = home.worker().expect("good").config;
    assert_eq!(
        config.store,
        StoreChoice::Directory(home.path("var/worker"))
    );
    assert_eq!(config.local.socket, home.path("run/worker.sock"));

    home.sources.flags = Options::default();
    let coordinator = CoordinatorConfig::load(&home.sources).expect("good").config;
    assert_eq!(coordinator.listen.port(), default::COORDINATOR_PORT);
    assert_eq!(
        coordinator.identity.head_key,
        Some(home.path("etc/certs/coordinator/head.key"))
    );
}

#[test]
fn without_a_home_a_path_must_be_given() {
    let mut home = Home::new();
    home.sources.surroundings.variables.clear();
    assert_eq!(
        home.error(),
        "`store` is not set, and without HOME it has no default"
    );
    home.flag(Field::Store, "none")
        .flag(Field::Socket, "/tmp/w.sock");
    assert_eq!(home.worker().expect("good").config.store, StoreChoice::None);
}

#[test]
fn an_error_names_the_option_the_value_and_the_bounds() {
    for (field, value, expected) in [
        (
            Field::StoreBudget,
            "1MiB",
            "`store_budget` cannot be `1MiB` (flag --store-budget): at least 32MiB are needed",
        ),
        (
            Field::Deadline,
            "0s",
            "`deadline` cannot be `0s` (flag --deadline): a deadline is between 1ms and 1h",
        ),
        (
            Field::LogFormat,
            "xml",
            "`log_format` cannot be `xml` (flag --log-format): it is `human` or `json`",
        ),
        (
            Field::Http,
            "0.0.0.0:80",
            "`http` cannot be `0.0.0.0:80` (flag --http): local HTTP has no authentication and \
             binds loopback only: 127.0.0.1:PORT or [::1]:PORT",
        ),
    ] {
        let mut home = Home::new();
        home.flag(field, value);
        assert_eq!(home.error(), expected);
    }
    let mut home = Home::new();
    home.flag(Field::Log, "larder=loud");
    assert!(
        home.error()
            .starts_with("`log` cannot be `larder=loud` (flag --log): ")
    );
}

#[test]
fn only_who_takes_definitions_has_a_limit_for_them() {
    let mut home = Home::new();
    home.sources.flags.set(Field::MaxSpecLen, Some("17MiB"));
    let error = CoordinatorConfig::load(&home.sources).expect_err("too large");
    assert_eq!(
        error.to_string(),
        "`max_spec_len` cannot be `17MiB` (flag --max-spec-len): a spec has between 1 byte and 16MiB"
    );
    let worker = home.worker().expect("not a worker's option");
    let fields: Vec<_> = worker.effective.iter().map(|one| one.field).collect();
    assert!(!fields.contains(&Field::MaxSpecLen));
}

#[test]
fn lists_come_as_repeated_flags_with_commas_and_as_yaml() {
    let mut home = Home::new();
    let coordinators = |home: &Home| {
        let config = home.worker().expect("good").config;
        config
            .coordinators
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    let values = ["a:1,b:2".to_owned(), "c:3".to_owned(), "a:1".to_owned()];
    home.sources.flags.set_list(Field::Coordinators, &values);
    assert_eq!(coordinators(&home), ["a:1", "b:2", "c:3"]);

    home.sources.flags = Options::default();
    home.write("etc/larder.yaml", "coordinators: [d:4, 'e:5']\n");
    assert_eq!(coordinators(&home), ["d:4", "e:5"]);
    home.variable("LARDER_COORDINATORS", "f:6, g:7");
    assert_eq!(coordinators(&home), ["f:6", "g:7"]);

    let many: Vec<_> = (1..=17).map(|port| format!("h:{port}")).collect();
    home.sources.flags.set_list(Field::Coordinators, &many);
    assert_eq!(
        home.error(),
        "`coordinators` has 17 values (flag --coordinator), at most 16 are allowed"
    );
}

#[test]
fn a_worker_needs_a_coordinator_and_an_identity() {
    let mut home = Home::new();
    home.sources.flags = Options::default();
    assert_eq!(home.error(), "`coordinators` is not set");

    home.flag(Field::Coordinators, "c1:7457");
    std::fs::remove_dir_all(home.path("etc/certs")).expect("it was there");
    let error = home.worker().expect_err("no identity");
    assert!(error.is_about_identity());
    for searched in ["etc/certs/worker", "home/.config/larder/certs/worker"] {
        let searched = home.path(searched).display().to_string();
        assert!(error.to_string().contains(&searched), "{error}");
    }

    // Four single files are an identity without a directory.
    for field in [Field::Cert, Field::Key, Field::Ca, Field::Trust] {
        home.flag(field, "/svid/x.pem");
    }
    let identity = home.worker().expect("good").config.identity;
    assert_eq!(identity.trust, Path::new("/svid/x.pem"));
}

#[test]
fn a_single_file_overrides_the_one_in_the_directory() {
    let mut home = Home::new();
    home.flag(Field::Certs, "/node")
        .flag(Field::Key, "/secret/key.pem");
    let identity = home.worker().expect("good").config.identity;
    assert_eq!(identity.cert, Path::new("/node/cert.pem"));
    assert_eq!(identity.key, Path::new("/secret/key.pem"));
}

#[test]
fn a_file_with_an_unknown_key_or_another_shape_is_refused() {
    for (text, expected) in [
        ("coordinator_s: x\n", "`coordinator_s` is no option"),
        (
            "coordinator: {peers: [a:1]}\n",
            "`peers` is no option of a coordinator",
        ),
        ("new_epoch: true\n", "`new_epoch` is no option"),
        ("- a\n", "the file must hold `option: value` lines"),
        ("worker: 7\n", "worker must hold `option: value` lines"),
        ("deadline: [1s]\n", "`deadline` must be one value"),
        ("peers: [{a: 1}]\n", "`peers` must be a list of texts"),
        ("1: 2\n", "a key of the file is not a text"),
    ] {
        let home = Home::new();
        let path = home.write("etc/larder.yaml", text);
        assert_eq!(home.error(), format!("{}: {expected}", path.display()));
    }
    let home = Home::new();
    home.write("etc/larder.yaml", "deadlne: 1s\n");
    let hint = home.worker().expect_err("unknown").hint();
    assert_eq!(hint.as_deref(), Some("did you mean `deadline`?"));
    home.write("etc/larder.yaml", "deadline: [\n");
    assert!(matches!(home.worker(), Err(ConfigError::Syntax { .. })));
    home.write("etc/larder.yaml", &"#".repeat(2 << 20));
    assert!(matches!(home.worker(), Err(ConfigError::Read { .. })));
}

#[test]
fn an_empty_file_and_an_empty_variable_say_nothing() {
    let mut home = Home::new();
    home.write("etc/larder.yaml", "# nothing yet\nworker:\n");
    home.variable("LARDER_LISTEN", "");
    home.variable("LARDER_PORT", "tcp://10.0.0.1:7457");
    assert_eq!(home.origin(Field::Listen), "default");
}

#[test]
fn an_option_of_another_role_at_the_top_is_left_alone() {
    let home = Home::new();
    home.write("etc/larder.yaml", "peers: [a:1]\nhead_key: /k\n");
    assert!(
        CoordinatorConfig::load(&Sources {
            flags: Options::default(),
            ..home.sources.clone()
        })
        .is_ok()
    );
    assert!(home.worker().is_ok());
}

#[test]
fn every_option_of_a_kind_is_reported_once() {
    let home = Home::new();
    let reported: Vec<_> = home
        .worker()
        .expect("good")
        .effective
        .iter()
        .map(|entry| entry.field)
        .collect();
    let known = Field::ALL.iter().copied();
    let known: Vec<_> = known
        .filter(|field| field.kinds().contains(&Kind::Worker))
        .collect();
    assert_eq!(reported, known);
}

#[test]
fn a_client_needs_nothing_and_says_where_it_looked() {
    let mut home = Home::new();
    home.sources.flags = Options::default();
    let config = ClientConfig::load(&home.sources).expect("good").config;
    assert_eq!(config.identity, None);
    assert_eq!(
        config.worker_sockets,
        [
            home.path("home/.local/state/larder/worker.sock"),
            home.path("run/worker.sock")
        ]
    );
    assert_eq!(
        config.identity_searched[0],
        home.path("etc/certs/publisher")
    );

    home.write("home/.config/larder/certs/reader/cert.pem", "");
    let config = ClientConfig::load(&home.sources).expect("good").config;
    let identity = config.identity.expect("found");
    assert_eq!(
        identity.ca,
        home.path("home/.config/larder/certs/reader/ca.pem")
    );
}

#[test]
fn the_sample_file_is_good_for_every_role() {
    let mut home = Home::new();
    home.sources.flags = Options::default();
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib/larder.yaml");
    home.sources.file = Some(sample.clone());
    let worker = home.worker().expect("good").config;
    assert_eq!(worker.listen.port(), 7458);
    let coordinator = CoordinatorConfig::load(&home.sources).expect("good").config;
    assert_eq!(
        coordinator.local.socket,
        Path::new("/run/larder/coordinator.sock")
    );
    let client = ClientConfig::load(&home.sources).expect("good").config;
    assert_eq!(client.coordinators.len(), 1);

    // What is commented out is good, too, once the marks are gone.
    let text = std::fs::read_to_string(sample).expect("readable");
    let is_option = |line: &str| {
        line.split(": ")
            .next()
            .is_some_and(|key| Field::ALL.iter().any(|field| field.name() == key.trim()))
    };
    let all: String = text
        .lines()
        .map(|line| match line.replacen("# ", "", 1) {
            bare if line.trim_start().starts_with('#') && is_option(&bare) => bare + "\n",
            _ => format!("{line}\n"),
        })
        .collect();
    assert!(all.contains("\nmax_spec_len: 1MiB\n") && all.contains("\n  cert: /run/spire"));
    home.sources.file = Some(home.write("all.yaml", &all));
    let client = ClientConfig::load(&home.sources).expect("good").config;
    assert!(client.identity.is_some());
    assert_eq!(home.worker().expect("good").config.peers.len(), 2);
    let defaults = default_texts(&home);
    for (field, default) in defaults {
        let commented = format!("{field}: {default}\n");
        assert!(
            all.contains(&commented),
            "the sample does not show `{commented}`"
        );
    }
}

/// Options that the sample shows with their defaults.
fn default_texts(home: &Home) -> Vec<(Field, String)> {
    let mut bare = Home::new();
    bare.sources.surroundings = home.sources.surroundings.clone();
    let shown = [
        Field::MaxSpecLen,
        Field::Deadline,
        Field::LogFormat,
        Field::StoreBudget,
        Field::Prefetch,
        Field::Freshness,
    ];
    let effective = bare.worker().expect("good").effective.into_iter();
    effective
        .filter(|entry| shown.contains(&entry.field))
        .map(|entry| (entry.field, entry.values.concat()))
        .collect()
}

#[test]
fn a_lease_is_a_span_within_its_bounds_or_off() {
    let lease = |text: &str| {
        let mut home = Home::new();
        home.sources.flags = Options::default();
        home.sources.flags.set(Field::Lease, Some(text));
        CoordinatorConfig::load(&home.sources).map(|loaded| loaded.config.lease)
    };
    let millis = |ms| Ok(Duration::from_millis(ms));
    let got = |text| lease(text).map_err(|error| error.to_string());
    assert_eq!(got("6s"), millis(6_000));
    assert_eq!(got("on"), millis(6_000));
    assert_eq!(got("200ms"), millis(200));
    for off in ["off", "0", "0s"] {
        assert_eq!(got(off), millis(0), "{off}");
    }
    for bad in ["199ms", "601s", "6", "soon"] {
        let error = got(bad).expect_err("refused");
        assert!(
            error.starts_with(&format!("`lease` cannot be `{bad}`")),
            "{error}"
        );
    }
}

#[test]
fn what_others_get_of_a_worker_may_be_limited() {
    for (text, limit) in [
        (None, None),
        (Some("unlimited"), None),
        (Some("off"), Some(0)),
        (Some("0"), Some(0)),
        (Some("2MiB"), Some(2 << 20)),
    ] {
        let mut home = Home::new();
        if let Some(text) = text {
            home.flag(Field::UploadLimit, text);
        }
        let config = WorkerConfig::load(&home.sources).expect("good").config;
        assert_eq!(config.upload_limit, limit, "{text:?}");
    }
}

#[test]
fn a_worker_says_whether_it_keeps_a_lease_what_it_fetches_ahead_and_how_fresh() {
    let mut home = Home::new();
    let defaults = WorkerConfig::load(&home.sources).expect("good").config;
    assert!(defaults.lease);
    assert_eq!(defaults.prefetch, Prefetch::Used);
    assert!(defaults.relay);
    assert_eq!(defaults.freshness, Freshness::Strict);
    home.write(
        "etc/larder.yaml",
        "lease: 2s\nworker:\n  prefetch: none\n  relay: off\n  freshness: bounded:60s\n",
    );
    home.sources.surroundings.etc = home.path("etc");
    let config = WorkerConfig::load(&home.sources).expect("good").config;
    assert!(config.lease, "how long is for the coordinator to say");
    assert_eq!(config.prefetch, Prefetch::None);
    assert!(!config.relay);
    assert_eq!(
        config.freshness,
        Freshness::Bounded(Duration::from_secs(60))
    );
    home.flag(Field::Lease, "off");
    assert!(
        !WorkerConfig::load(&home.sources)
            .expect("good")
            .config
            .lease
    );
    for (field, bad) in [
        (Field::Freshness, "bounded"),
        (Field::Freshness, "bounded:0s"),
        (Field::Freshness, "verified"),
        (Field::Prefetch, "some"),
        (Field::Lease, "maybe"),
        (Field::UploadLimit, "2 MB/s"),
        (Field::Relay, "maybe"),
    ] {
        let mut home = Home::new();
        home.flag(field, bad);
        let error = WorkerConfig::load(&home.sources)
            .expect_err("refused")
            .to_string();
        assert!(error.contains(&format!("`{bad}`")), "{error}");
    }
}
