//! The manifests for Kubernetes, against the types of its API. The chart of the driver has no
//! schema, so of the values for it only the names are checked.

use std::fs;
use std::path::Path;

use k8s_openapi::api::apps::v1::DaemonSet;
use serde_json::Value;

/// A file in `packaging/kubernetes`.
fn packaged(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/kubernetes").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The paths of values in `written` that are not the same in `understood`.
fn lost(written: &Value, understood: &Value, path: &str) -> Vec<String> {
    match (written, understood) {
        (Value::Object(fields), Value::Object(others)) => {
            let each = fields.iter().flat_map(|(name, value)| {
                lost(value, others.get(name).unwrap_or(&Value::Null), &format!("{path}.{name}"))
            });
            each.collect()
        }
        (Value::Array(items), Value::Array(others)) if items.len() == others.len() => {
            let each = items.iter().zip(others).enumerate();
            each.flat_map(|(at, (item, other))| lost(item, other, &format!("{path}[{at}]"))).collect()
        }
        _ if written == understood => Vec::new(),
        _ => vec![path.to_owned()],
    }
}

#[test]
fn the_daemon_set_of_engines_is_one() {
    let written: Value = serde_norway::from_str(&packaged("rdma-engine.yaml")).unwrap();
    let daemon_set: DaemonSet = serde_json::from_value(written.clone()).unwrap();
    // A field that the API does not have is passed over as it is read, and missing here.
    assert_eq!(lost(&written, &serde_json::to_value(&daemon_set).unwrap(), ""), [""; 0]);
    let spec = daemon_set.spec.unwrap();
    assert_eq!(spec.selector.match_labels, spec.template.metadata.unwrap().labels);
    let pod = spec.template.spec.unwrap();
    let volumes: Vec<_> = pod.volumes.unwrap().into_iter().map(|volume| volume.name).collect();
    let mounts: Vec<_> =
        pod.containers[0].volume_mounts.iter().flatten().map(|mount| mount.name.clone()).collect();
    assert_eq!(mounts, volumes, "each volume is mounted");
}

#[test]
fn the_values_for_the_chart_change_the_mount_service_only() {
    let values: Value = serde_norway::from_str(&packaged("values.yaml")).unwrap();
    let names = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&values), ["mountService"]);
    assert_eq!(names(&values["mountService"]), ["image", "resources", "tag"]);
}

#[test]
fn the_image_and_the_manifests_speak_of_the_same() {
    let (image, engine) = (packaged("Containerfile"), packaged("rdma-engine.yaml"));
    let values: Value = serde_norway::from_str(&packaged("values.yaml")).unwrap();
    let service = &values["mountService"];
    let tagged = format!("{}:{}", service["image"].as_str().unwrap(), service["tag"].as_str().unwrap());
    assert!(tagged.ends_with(&format!(":{}", env!("CARGO_PKG_VERSION"))), "{tagged}");
    assert!(image.contains(&tagged) && engine.contains(&tagged), "{tagged}");
    assert!(image.contains("/usr/bin/weed.real"));
}
