"""Writes one JSON schema for each kind that the chart renders, in the form that kubeconform reads without a network.

usage: schemas.py OUT WHEEL CRD_FILE ...

WHEEL is the Python package kubernetes-validate, which contains the strict schemas of each Kubernetes version. They
refer to a common file by a URL; here each schema contains the definitions that it uses. The schema of a custom
resource comes from its CustomResourceDefinition, with unknown fields forbidden.
"""

import json
import sys
import zipfile
from pathlib import Path

import yaml

VERSIONS = ("1.33", "1.34", "1.35", "1.36")
KINDS = {
    ("", "v1"): ["ConfigMap", "Pod", "Secret", "Service", "ServiceAccount"],
    ("apiextensions", "v1"): ["CustomResourceDefinition"],
    ("apps", "v1"): ["Deployment"],
    ("autoscaling", "v2"): ["HorizontalPodAutoscaler"],
    ("networking", "v1"): ["Ingress", "NetworkPolicy"],
    ("policy", "v1"): ["PodDisruptionBudget"],
    ("rbac", "v1"): ["ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"],
}


def references(value):
    """Yields each object with a $ref below a value."""
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value
        for child in value.values():
            yield from references(child)
    elif isinstance(value, list):
        for child in value:
            yield from references(child)


def bundle(schema, definitions):
    """Returns the schema with the definitions that it uses, directly and indirectly."""
    schema = json.loads(json.dumps(schema))
    schema.pop("$id", None)
    used, waiting = {}, [schema]
    while waiting:
        for reference in references(waiting.pop()):
            name = reference["$ref"].rsplit("/", 1)[-1]
            reference["$ref"] = f"#/$defs/{name}"
            if name not in used:
                used[name] = json.loads(json.dumps(definitions[name]))
                waiting.append(used[name])
    schema["$defs"] = used
    return schema


def strict(schema):
    """Returns the schema of a custom resource as JSON schema that forbids unknown fields."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: strict(value) for key, value in schema.items() if not key.startswith("x-kubernetes-")}
    if schema.get("x-kubernetes-int-or-string"):
        result["type"] = ["integer", "string"]
        result.pop("anyOf", None)
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            result.setdefault("additionalProperties", False)
    return result


def main(out, wheel, *crds):
    out = Path(out)
    with zipfile.ZipFile(wheel) as archive:
        for version in VERSIONS:
            folder = f"kubernetes_validate/kubernetes-json-schema/v{version}.0-local-strict"
            definitions = json.loads(archive.read(f"{folder}/_definitions.json"))["$defs"]
            (out / version).mkdir(parents=True, exist_ok=True)
            for (group, api), kinds in KINDS.items():
                for kind in kinds:
                    name = "-".join(part for part in (kind.lower(), group, api) if part) + ".json"
                    schema = bundle(json.loads(archive.read(f"{folder}/{name}")), definitions)
                    (out / version / name).write_text(json.dumps(schema))
    (out / "custom").mkdir(exist_ok=True)
    for file in crds:
        crd = yaml.safe_load(Path(file).read_text())
        for version in crd["spec"]["versions"]:
            schema = strict(version["schema"]["openAPIV3Schema"])
            # The schema of a custom resource describes the metadata as any object.
            schema["properties"]["metadata"] = {"type": "object"}
            # As kubeconform names it: kind, the first part of the group, version.
            group = crd["spec"]["group"].split(".")[0]
            name = f"{crd['spec']['names']['kind'].lower()}-{group}-{version['name']}.json"
            (out / "custom" / name).write_text(json.dumps(schema))


if __name__ == "__main__":
    main(*sys.argv[1:])
