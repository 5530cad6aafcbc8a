//! The reviewed template of the example app in `cdk/`, with what AWS would put in place of its references.

use serde_json::Value;

pub(crate) const REGION: &str = "ap-northeast-1";

/// Logical id and properties of all resources of a type.
pub(crate) fn resources(kind: &str) -> Vec<(String, Value)> {
    let text = include_str!("../../cdk/test/snapshot/bastion-example-prod.template.json");
    let template: Value = serde_json::from_str(text).unwrap();
    let resources = template["Resources"].as_object().unwrap().iter();
    let found: Vec<_> = resources
        .filter(|(_, resource)| resource["Type"] == kind)
        .map(|(id, resource)| (id.clone(), resolve(&resource["Properties"])))
        .collect();
    assert!(!found.is_empty(), "no {kind} in the template");
    found
}

/// The relay's configuration in a task definition.
pub(crate) fn relay_config(definition: &Value) -> String {
    let variables = definition["ContainerDefinitions"][0]["Environment"].as_array().unwrap();
    let variable = variables.iter().find(|variable| variable["Name"] == "BASTION_CONFIG").unwrap();
    variable["Value"].as_str().unwrap().to_owned()
}

fn resolve(value: &Value) -> Value {
    match value {
        Value::Array(values) => values.iter().map(resolve).collect(),
        Value::Object(members) => match members.iter().next() {
            Some((function, argument)) if members.len() == 1 && (function == "Ref" || function.starts_with("Fn::")) => {
                intrinsic(function, argument).into()
            }
            _ => members.iter().map(|(key, value)| (key.clone(), resolve(value))).collect(),
        },
        other => other.clone(),
    }
}

fn intrinsic(function: &str, argument: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    match function {
        "Ref" if argument == "AWS::Region" => REGION.to_owned(),
        "Ref" => text(argument),
        "Fn::GetAtt" => argument.as_array().unwrap().iter().map(text).collect::<Vec<_>>().join("."),
        "Fn::ImportValue" => {
            let export = text(argument);
            if export.contains("Port") { "5432".to_owned() } else { export.replace(':', ".") }
        }
        "Fn::Join" => {
            let parts = resolve(&argument[1]);
            parts.as_array().unwrap().iter().map(text).collect::<Vec<_>>().join(argument[0].as_str().unwrap())
        }
        "Fn::Sub" => text(argument),
        other => panic!("{other} is not resolved here"),
    }
}
