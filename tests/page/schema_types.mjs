// Writes a TypeScript file that compares client.d.ts with the published schemas in tests/golden/schemas. tsc refuses it when a
// key is missing in the type of the client, is invented there, or has another type.
// usage: node schema_types.mjs <file of the result>
import { readdirSync, readFileSync, writeFileSync } from "node:fs";

const folder = new URL("../golden/schemas/", import.meta.url);
/** Type of event → interface of client.d.ts. */
const INTERFACES = {
  "state.initial": "StateInitial",
  "instance.state": "InstanceState",
  "claim.state": "ClaimState",
  "pool.instance.ready": "PoolInstanceReady",
  "tenant.claimed": "TenantClaimed",
  "tenant.released": "TenantReleased",
  "pool.depth": "PoolDepth",
  telemetry: "Telemetry",
  "mqtt.message": "MqttMessage",
  heartbeat: "Heartbeat",
  "upstream.down": "Upstream",
  "upstream.up": "Upstream",
  "matrix-down": "Upstream",
  "matrix-up": "Upstream",
  "auth.expiring": "AuthExpiring",
  "stream.closing": "StreamClosing",
  "relay.gap": "RelayGap",
};
/** Objects inside events → type of client.d.ts. */
const OBJECTS = {
  Instance: "client.Instance",
  Claim: "client.Claim",
  Pool: "client.Pool",
  TelemetryMetrics: 'client.Telemetry["metrics"]',
  Endpoint: 'NonNullable<client.Claim["endpoint"]>',
  RateLimit: 'NonNullable<client.Heartbeat["rate_limit"]>',
};

/** Returns the TypeScript type of a schema. Texts are open: a client must accept a later value. */
function typeOf(schema, defs) {
  if (schema.$ref) return typeOf(defs[schema.$ref.replace("#/$defs/", "")], defs);
  const forms = schema.anyOf ?? schema.oneOf;
  if (forms) return forms.map((form) => typeOf(form, defs)).join(" | ");
  if (schema.type === "string") return schema.enum || schema.const === undefined ? "string" : JSON.stringify(schema.const);
  if (schema.type === "boolean") return schema.const === undefined ? "boolean" : String(schema.const);
  if (schema.type === "integer" || schema.type === "number") return "number";
  if (schema.type === undefined) return "unknown";
  if (schema.type === "null") return "null";
  if (schema.type === "array") return `(${typeOf(schema.items, defs)})[]`;
  if (!schema.properties) return `Record<string, ${typeOf(schema.additionalProperties, defs)}>`;
  const member = ([key, property]) =>
    `${JSON.stringify(key)}${schema.required.includes(key) ? "" : "?"}: ${typeOf(property, defs)}`;
  return `{ ${Object.entries(schema.properties).map(member).join("; ")} }`;
}

const lines = [
  'import type * as client from "../../clients/js/client.js";',
  "type Keys<T> = T extends unknown ? keyof T : never;",
  "/** Keys of A that B does not have. */",
  "type Extra<A, B> = Exclude<Keys<A>, Keys<B>>;",
];
/** Interface → the types that it stands for. */
const published = new Map();
const objects = new Map();
let number = 0;
for (const file of readdirSync(folder)) {
  const name = file.replace(/\.json$/, "");
  if (name === "openapi" || name === "asyncapi") continue;
  if (!INTERFACES[name]) throw new Error(`no interface for ${name}`);
  const schema = JSON.parse(readFileSync(new URL(file, folder), "utf8"));
  const defs = schema.$defs ?? {};
  // The client does not read /ws.
  const forms = schema.anyOf ? schema.anyOf.map(({ $ref }) => $ref.replace("#/$defs/", "")).filter((form) => form !== "ws") : [];
  const schemas = schema.anyOf ? forms.map((form) => defs[form]) : [schema];
  for (const form of schemas) {
    number += 1;
    lines.push(`/** ${name} */`, `interface Published${number} ${typeOf(form, defs)}`);
    published.set(INTERFACES[name], [...(published.get(INTERFACES[name]) ?? []), `Published${number}`]);
  }
  for (const [object, definition] of Object.entries(defs)) {
    if (["ws", "full", "relay"].includes(object)) continue;
    if (!OBJECTS[object]) throw new Error(`no type for ${object}`);
    objects.set(object, typeOf(definition, defs));
  }
}
for (const [object, type] of objects) {
  lines.push(`interface Published_${object} ${type}`);
  published.set(OBJECTS[object], [`Published_${object}`]);
}
for (const [declared, types] of published) {
  number += 1;
  const own = declared.includes("client.") ? declared : `client.${declared}`;
  const all = types.join(" | ");
  lines.push(
    `export const assignable${number}: (event: ${all}) => ${own} = (event) => event;`,
    `export const missing${number}: [Extra<${all}, ${own}>] extends [never] ? true : Extra<${all}, ${own}> = true;`,
    // Every event of the client can have them.
    `export const invented${number}: [Exclude<Extra<${own}, ${all}>, "id" | "rate_limit">] extends [never] ? true : Extra<${own}, ${all}> = true;`,
  );
}
writeFileSync(process.argv[2], lines.join("\n") + "\n");
