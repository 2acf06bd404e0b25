//! The guide for people, docs/api.md, is true.

use std::collections::BTreeSet;

use eswitchd_api::error::Problem;

use crate::{double::Double, wire::Running};

const GUIDE: &str = include_str!("../../../docs/api.md");
const DOCUMENT: &str = include_str!("../../../docs/openapi.json");

/// The fenced blocks of a language.
fn blocks(language: &str) -> Vec<&'static str> {
    let fence = format!("```{language}\n");
    GUIDE.split(&fence).skip(1).filter_map(|rest| rest.split("\n```").next()).collect()
}

/// Each `curl` command with the status that the guide promises.
fn commands() -> Vec<(&'static str, &'static str)> {
    let lines = blocks("sh").into_iter().filter(|block| block.starts_with("curl "));
    lines
        .flat_map(|block| block.split_inclusive("\ncurl ").collect::<Vec<_>>())
        .flat_map(|part| part.split("\ncurl "))
        .filter(|part| !part.is_empty())
        .map(|part| part.trim_start_matches("curl "))
        .map(|command| command.rsplit_once("     # ").expect("a command and its status"))
        .collect()
}

#[tokio::test]
async fn every_curl_line_works_as_it_stands() {
    let daemon = Running::usual(Double::with(|_| {})).await;
    let mut ran = 0;
    for (command, status) in commands() {
        let line = format!("curl -o /dev/null -w '%{{http_code}}' {command}");
        let shell = tokio::process::Command::new("sh")
            .env("S", daemon.socket())
            .args(["-c", &line])
            .output()
            .await
            .unwrap();
        let said = String::from_utf8_lossy(&shell.stdout);
        let error = String::from_utf8_lossy(&shell.stderr);
        assert_eq!(said, status, "{line} (this test needs curl 7.82) {error}");
        ran += 1;
    }
    assert_eq!(ran, 26);
}

#[test]
fn every_problem_is_in_the_table_of_errors() {
    let named = |text: &str| -> BTreeSet<String> {
        let parts = text.split("\"/problems/").skip(1);
        parts.filter_map(|part| part.split('"').next()).map(str::to_owned).collect()
    };
    let documented = named(DOCUMENT);
    assert!(documented.len() > 10, "{documented:?}");
    for kind in documented {
        assert!(GUIDE.contains(&format!("| `{kind}` |")), "{kind}");
    }
}

#[test]
fn the_examples_of_problems_are_problems() {
    let examples = blocks("json");
    assert_eq!(examples.len(), 2);
    for example in examples {
        let problem: Problem = serde_json::from_str(example).unwrap();
        assert!(DOCUMENT.contains(&problem.title), "{problem:?}");
    }
}
