//! The example definitions pass the three tests of every saga.

use std::{fs, path::Path};

use actors_core::saga::{
    Phase, load, parse,
    simulate::{Plan, fixture, run, test},
};

fn examples() -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/examples/sagas");
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.iter().map(|file| (file.display().to_string(), fs::read_to_string(file).unwrap())).collect()
}

#[test]
fn every_example_succeeds_unwinds_from_each_step_and_repeats_each_step() {
    let examples = examples();
    assert_eq!(examples.len(), 3);
    for (name, text) in examples {
        let definition = parse(&text).unwrap_or_else(|findings| panic!("{name}: {findings:#?}"));
        let fixture = fixture(&text, &definition).unwrap();
        let report = test(&definition, &fixture);
        println!("{name}: {report:#?}");
        assert_eq!(report.problems, Vec::<String>::new(), "{name}");
        assert_eq!(load(&definition.canonical).unwrap(), definition, "{name}");
    }
}

#[test]
fn every_example_ends_whatever_fails_and_whatever_comes_first() {
    for (name, text) in examples() {
        let definition = parse(&text).unwrap();
        let fixture = fixture(&text, &definition).unwrap();
        for seed in 0..100 {
            let plan = Plan { seed: Some(seed), failing_milli: 300, ..Plan::default() };
            let run = run(&definition, &fixture, &plan);
            assert_eq!(run.faults, Vec::<String>::new(), "{name}, seed {seed}");
            let stuck = matches!(run.state.phase, Phase::NeedsOperator { .. });
            assert!(run.state.phase.is_end() || stuck, "{name}, seed {seed}: {:?}", run.state.phase);
        }
    }
}
