//! The scenarios that come with it, for a coordinator and three workers.

/// Name and text of a scenario.
pub type Shipped = (&'static str, &'static str);

macro_rules! shipped {
    ($($name:literal),* $(,)?) => {
        /// Each is `scenarios/NAME.yaml`.
        pub const ALL: &[Shipped] = &[$((
            $name,
            include_str!(concat!("../scenarios/", $name, ".yaml")),
        )),*];
    };
}

shipped!(
    "link-cut",
    "asymmetric-cut",
    "flapping",
    "loss-20",
    "satellite",
    "coordinator-isolated",
    "split",
    "mtu-1280",
    "coordinator-20mbit",
);

/// The text of a scenario by its name.
pub fn text(name: &str) -> Option<&'static str> {
    let found = ALL.iter().find(|(known, _)| *known == name);
    found.map(|(_, text)| *text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::Scenario;

    #[test]
    fn every_shipped_scenario_is_one_and_every_file_is_shipped() {
        for (name, text) in ALL {
            let scenario: Scenario = text
                .parse()
                .unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(
                scenario.nodes(),
                ["coordinator", "w1", "w2", "w3"],
                "{name}"
            );
            assert!(!scenario.about().is_empty(), "{name}");
        }
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/scenarios");
        assert_eq!(
            std::fs::read_dir(dir).expect("a directory").count(),
            ALL.len()
        );
    }
}
