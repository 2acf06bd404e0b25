//! Whatever the queries of the dashboards answer, `cargo lab pictures` draws it.
//!
//! In: answers that are made up, of every kind of panel, and the browser that `cargo lab test` puts
//! into the cache. What a real Prometheus answers is drawn by the command itself.

use std::fs;

use lab::{
    browser::Browser,
    dashboards::{DASHBOARDS, Query, queries},
    pictures,
};
use serde_json::{Value, json};

/// A series that begins late, pauses, and is once no number; every third query has none.
fn answer((number, query): (usize, &Query)) -> Value {
    let mut metric: serde_json::Map<String, Value> =
        query.told().into_iter().map(|label| (label, json!("</script>"))).collect();
    metric.insert("le".into(), json!("0.5"));
    let values = json!([[102, "1"], [104, "NaN"], [106, "2.5"], [120, "0"]]);
    let series = json!({"metric": metric, "values": values});
    pictures::answer(query, if number % 3 == 2 { Vec::new() } else { vec![series] })
}

fn page() -> Value {
    let port = pictures::EXPLAINED;
    let counts = json!({"packets": 100, "bytes": 100_000});
    let traffic = json!({
        "over_ms": 2000,
        "ports": {port: {"sent": counts, "received": counts}},
    });
    let mut page = json!({
        format!("/v1/ports/{port}/explain"): {"links": [{"link": "asked", "message": "yes"}]},
        pictures::FOLLOWED: format!("event: traffic\ndata: {traffic}\n\n"),
    });
    for path in pictures::ASKED {
        page[path] = json!({"items": []});
    }
    page["/v1/ports?limit=500"]["items"] = json!([{"id": port, "spec": {"function": {"vf": {"index": 1}}}, "status": {"conditions": []}}]);
    page
}

#[test]
fn each_dashboard_and_the_page_become_a_picture() {
    let folder = tempfile::tempdir().unwrap();
    let (answers, drawn) = (folder.path().join("answers"), folder.path().join("drawn"));
    fs::create_dir(&answers).unwrap();
    for (name, text) in DASHBOARDS {
        let queries = queries(&serde_json::from_str(text).unwrap());
        let list: Vec<Value> = queries.iter().enumerate().map(answer).collect();
        let answered = json!({"from": 100, "to": 120, "answers": list});
        fs::write(answers.join(format!("{name}.json")), answered.to_string()).unwrap();
    }
    fs::write(answers.join("page.json"), page().to_string()).unwrap();
    pictures::draw(&mut Browser::start().unwrap(), &answers, &drawn).unwrap();
    let names = DASHBOARDS.map(|(name, _)| name);
    for name in names.into_iter().chain(["page-light", "page-dark"]) {
        let picture = fs::read(drawn.join(format!("{name}.png"))).unwrap();
        // PNG, section 5.2 and 11.2.1: the signature, and the width of the picture.
        assert_eq!(picture[..8], *b"\x89PNG\r\n\x1a\n", "{name}");
        assert_eq!(picture[16..20], 1280_u32.to_be_bytes(), "{name}");
    }

    // A query whose answer is of another shape is not drawn as if it were nothing.
    let broken = json!({"from": 100, "to": 120, "answers": [{"panel": 1, "series": [{}]}]});
    fs::write(answers.join("fleet.json"), broken.to_string()).unwrap();
    let refused = pictures::draw(&mut Browser::start().unwrap(), &answers, &drawn);
    assert!(refused.unwrap_err().to_string().contains("TypeError"));
}
