//! What `ensure` says that it did is what the kind's `change` said that it would.

use rhizome_model::kind::Change;
use rhizome_model::{Done, WorkloadKind};
use serde_json::{Value, json};

use crate::world::{World, id};

/// Ensures each spec in turn, and compares with the change from the one before.
async fn follow(world: &World, kind: WorkloadKind, name: &str, specs: &[Value]) -> Vec<Done> {
    let workload = world.sal.workload(kind);
    let mut before: Option<Value> = None;
    let mut all = Vec::new();
    for spec in specs {
        let spec = kind.parse_spec(spec.clone()).unwrap();
        let expected = match before.map(|old| kind.change(&old, &spec).unwrap()) {
            None => Done::Created,
            Some(Change::None) => Done::Unchanged,
            Some(Change::Update(_)) => Done::Updated,
            Some(Change::Replace { .. }) => Done::Replaced,
        };
        let ensured = workload.ensure(&id(name), &spec).await.unwrap();
        assert_eq!(ensured.done, expected, "{spec}");
        all.push(ensured.done);
        before = Some(spec);
    }
    all
}

#[tokio::test]
async fn ensure_does_what_a_plan_foretells() {
    let world = World::new().await;
    let size = |mib: u64| json!({ "size": mib << 20 });
    let sizes = [size(8), size(8), size(16), size(4)];
    let done = follow(&world, WorkloadKind::Volume, "1/demo/data", &sizes).await;
    assert_eq!(done, [Done::Created, Done::Unchanged, Done::Updated, Done::Updated]);

    let base = json!({
        "image": world.image, "command": ["/bin/sleep", "1000"], "memory": "32MiB",
        "mounts": [{ "volume": "data", "path": "/data" }],
    });
    let with = |field: &str, value: Value| {
        let mut spec = base.clone();
        spec[field] = value;
        spec
    };
    let specs = [
        base.clone(),
        base.clone(),
        with("memory", json!("64MiB")),
        with("pids", json!(64)),
        with("disk", json!("64MiB")),
        with("restart", json!("never")),
        with("env", json!({ "A": "b" })),
        with("command", json!(["/bin/sleep", "2000"])),
        with("workdir", json!("/data")),
        with("mounts", json!([])),
        base.clone(),
        with("cpu", json!(0.5)),
    ];
    let done = follow(&world, WorkloadKind::Machine, "1/demo/web", &specs).await;
    let times = |what| done.iter().filter(|d| **d == what).count();
    assert_eq!((times(Done::Updated), times(Done::Replaced)), (5, 5), "{done:?}");
}
