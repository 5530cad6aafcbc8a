//! The JSON Schema of the audit log (`docs/audit.schema.json`), and as much of JSON Schema 2020-12 as it uses. What it does not
//! know is an error, so that nothing of the schema is ignored.

use serde_json::Value;

const AUDIT: &str = include_str!("../../../docs/audit.schema.json");

/// Holds a line of a relay's log to the schema. Metrics and lines of the program's own log pass.
///
/// # Errors
/// What is wrong with it.
pub fn check_line(line: &str) -> Result<(), String> {
    match serde_json::from_str::<Value>(line) {
        Ok(record) if record.get("audit").is_some() => {
            check_record(&record).map_err(|wrong| format!("{wrong} in {line}"))
        }
        _ if line.starts_with(r#"{"audit""#) => Err(format!("no JSON: {line}")),
        _ => Ok(()),
    }
}

/// Holds a record to the schema.
///
/// # Errors
/// What is wrong with it.
pub fn check_record(record: &Value) -> Result<(), String> {
    let schema: Value = serde_json::from_str(AUDIT).map_err(|error| format!("the schema is no JSON: {error}"))?;
    check(record, &schema, &schema, "record")
}

fn check(value: &Value, schema: &Value, root: &Value, at: &str) -> Result<(), String> {
    let rules = schema.as_object().ok_or("a schema that is no object")?;
    for (keyword, rule) in rules {
        let number = |rule: &Value| rule.as_u64().ok_or_else(|| format!("{keyword} of {at} is no number"));
        let is_bad = match keyword.as_str() {
            "$schema" | "$id" | "$defs" | "title" | "description" | "format" | "additionalProperties" => false,
            "$ref" => {
                let pointer = rule.as_str().and_then(|rule| rule.strip_prefix('#')).ok_or("a reference elsewhere")?;
                let target = root.pointer(pointer).ok_or_else(|| format!("{rule} is not there"))?;
                check(value, target, root, at)?;
                false
            }
            "const" => value != rule,
            "enum" => !rule.as_array().is_some_and(|known| known.contains(value)),
            "type" => !is_of_type(value, rule)?,
            "minimum" => value.as_u64().is_some_and(|value| number(rule).is_ok_and(|least| value < least)),
            "maximum" => value.as_u64().is_some_and(|value| number(rule).is_ok_and(|most| value > most)),
            "maxLength" => characters(value) > number(rule)?,
            "minLength" => value.is_string() && characters(value) < number(rule)?,
            "minItems" => {
                value.as_array().is_some_and(|items| number(rule).is_ok_and(|least| (items.len() as u64) < least))
            }
            "uniqueItems" => {
                value.as_array().is_some_and(|items| (1..items.len()).any(|n| items[n..].contains(&items[n - 1])))
            }
            "items" => {
                for item in value.as_array().into_iter().flatten() {
                    check(item, rule, root, &format!("{at}[]"))?;
                }
                false
            }
            "required" => {
                let mut names = rule.as_array().into_iter().flatten().filter_map(Value::as_str);
                if let Some(name) = names.find(|name| value.get(*name).is_none()) {
                    return Err(format!("{at} has no {name}"));
                }
                false
            }
            "properties" => {
                for (name, value) in value.as_object().into_iter().flatten() {
                    match rule.get(name) {
                        Some(rule) => check(value, rule, root, &format!("{at}.{name}"))?,
                        None if rules.get("additionalProperties") == Some(&Value::Bool(false)) => {
                            return Err(format!("{at} has {name}"));
                        }
                        None => {}
                    }
                }
                false
            }
            "oneOf" => {
                let branches = rule.as_array().ok_or("oneOf without branches")?;
                let results: Vec<_> = branches.iter().map(|branch| check(value, branch, root, at)).collect();
                if results.iter().filter(|result| result.is_ok()).count() != 1 {
                    // That which is closest: the one whose event it is.
                    let reasons = results.into_iter().filter_map(Result::err);
                    let event = reasons.filter(|reason| !reason.contains(".event is")).collect::<Vec<_>>().join("; ");
                    return Err(format!("{at} is none of the records, or more than one: {event}"));
                }
                false
            }
            other => return Err(format!("the schema has {other}, which is not known here")),
        };
        if is_bad {
            return Err(format!("{at} is {value}, against {keyword} {rule}"));
        }
    }
    Ok(())
}

fn characters(value: &Value) -> u64 {
    value.as_str().map_or(0, |text| text.chars().count() as u64)
}

fn is_of_type(value: &Value, rule: &Value) -> Result<bool, String> {
    let is = |name: &Value| match name.as_str() {
        Some("array") => Ok(value.is_array()),
        Some("boolean") => Ok(value.is_boolean()),
        Some("integer") => Ok(value.is_u64() || value.is_i64()),
        Some("null") => Ok(value.is_null()),
        Some("object") => Ok(value.is_object()),
        Some("string") => Ok(value.is_string()),
        _ => Err(format!("type {name} is not known here")),
    };
    match rule {
        Value::Array(names) => Ok(names.iter().map(is).collect::<Result<Vec<_>, _>>()?.contains(&true)),
        name => is(name),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_wrong_with_a_record_is_said() {
        let good = json!({"audit": 2, "n": 7, "time": "2026-01-01T00:00:00.000Z", "event": "statement_not_run", "conn_id": 1,
            "target": "orders", "session_name": null, "db_user": "u", "statement": 3});
        assert_eq!(check_record(&good), Ok(()));
        for (field, value, wrong) in [
            ("audit", json!(1), "audit is 1"),
            ("n", json!(0), "n is 0"),
            ("n", json!("7"), "n is \"7\""),
            ("target", json!("x".repeat(257)), "against maxLength 256"),
            ("truncated", json!([]), "against minItems"),
            ("truncated", json!(["a", "b", "a"]), "against uniqueItems"),
            ("more", json!(1), "record has more"),
            ("event", json!("statement"), "record has no kind"),
        ] {
            let mut bad = good.clone();
            bad[field] = value;
            let said = check_line(&bad.to_string()).unwrap_err();
            assert!(said.contains(wrong), "{field}: {said}");
        }
        assert!(check_line("{\"audit\":2,\"n\":7,\"cut").is_err());
        assert_eq!(check_line("{\"_aws\":{}}"), Ok(()));
    }
}
