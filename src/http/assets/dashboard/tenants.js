// The view of the tenants: each with its claims below.
import { ago, matches, some } from "./format.js";
import { Grid } from "./grid.js";
import { Component, html } from "./html.js";
import { CLAIM_PHASES, Choice, Clear, Name, Phase, Summary, Tools, byPhase, cached, compare } from "./parts.js";

const FILTERS = ["q", "claim"];

export class Tenants extends Component {
  #rows = cached();
  #tenants = cached();

  /** A row for each tenant, and one for each of its claims that match. A tenant that matches shows all its claims. */
  #find(claims, { q = "", claim: phase }) {
    const text = q.trim().toLowerCase();
    const tenants = new Map();
    for (const claim of claims.values()) {
      if (phase && claim.phase !== phase) continue;
      const { tenantId, name, workloadRef, instanceId, endpoint, labels } = claim;
      if (!matches(text, [tenantId, name, workloadRef, claim.phase, instanceId, endpoint?.host], labels)) continue;
      const found = tenants.get(tenantId);
      if (found) found.push(claim);
      else tenants.set(tenantId, [claim]);
    }
    const rows = [];
    for (const tenantId of [...tenants.keys()].sort()) {
      const own = tenants.get(tenantId).sort((a, b) => compare(a.name, b.name, false));
      rows.push({ key: `tenant/${tenantId}`, tenantId, claims: own });
      for (const claim of own) rows.push({ key: claim.uid, claim });
    }
    return { rows, tenants: tenants.size };
  }

  render({ store, address, status, gridRef }) {
    const { state } = store.client;
    const { params } = address.current;
    const found = this.#rows(state.version, [params.q, params.claim], () => this.#find(state.claims, params));
    const tenants = this.#tenants(
      state.version,
      [],
      () => new Set([...state.claims.values()].map(({ tenantId }) => tenantId)).size,
    );
    const phases = byPhase(CLAIM_PHASES, store.overview.claimPhases);
    const now = store.now();
    const columns = [
      {
        key: "name",
        title: "Tenant and claims",
        isHeader: true,
        class: "name",
        render: ({ tenantId, claim }) =>
          claim ? html`<span class="child"><${Name} value=${claim.name} /></span>` : tenantId || "(no tenant)",
      },
      {
        key: "phase",
        title: "Phase",
        class: "phases",
        render: ({ claim, claims }) =>
          claim
            ? html`<${Phase} value=${claim.phase} />`
            : `${claims.filter(({ phase }) => phase === "Active").length} of ${claims.length} active`,
      },
      {
        key: "instance",
        title: "Instance",
        class: "tenant",
        render: ({ claim }) => claim && (claim.instanceId ? html`<${Name} value=${claim.instanceId} />` : "–"),
      },
      { key: "workload", title: "Workload", class: "wide", render: ({ claim }) => (claim ? claim.workloadRef : "") },
      {
        key: "source",
        title: "How obtained",
        class: "wide source",
        render: ({ claim }) => (claim ? (claim.source ?? "–") : ""),
      },
      {
        key: "claimed",
        title: "Claimed",
        class: "wide age",
        render: ({ claim }) => (claim ? ago(claim.claimedAt, now) : ""),
      },
    ];
    const text = `${some(found.tenants, tenants, "tenant")}, ${some(found.rows.length - found.tenants, state.claims.size, "claim")}`;
    return html`<section aria-label="Tenants">
      <${Tools} address=${address} names=${FILTERS} search="tenant, claim, instance">
        <${Choice} address=${address} name="claim" label="Phase of the claim" values=${phases} />
      </>
      <${Summary} text=${text} status=${status} store=${store}><${Clear} address=${address} names=${FILTERS} /></>
      <${Grid}
        handle=${gridRef} label="Tenants and their claims" rows=${found.rows} columns=${columns} sort=${{}}
        rowKey=${({ key }) => key}
        rowProps=${({ claim, tenantId }) =>
          claim ? { "data-claim": claim.name } : { "data-tenant": tenantId, class: "group" }}
        onOpen=${({ claim, tenantId }) => (claim ? address.show("claim", claim.name) : address.show("tenant", tenantId))}
        empty=${state.claims.size === 0 ? "No tenant has a claim." : "No tenant matches the filters."}
      />
    </section>`;
  }
}
