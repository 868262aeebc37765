// The view of all instances.
import { age, includes, matches, some } from "./format.js";
import { Grid } from "./grid.js";
import { Component, html } from "./html.js";
import {
  Choice,
  Clear,
  Name,
  PHASES,
  Phase,
  Summary,
  Text,
  Tools,
  byPhase,
  cached,
  compare,
  sortOf,
} from "./parts.js";

const FILTERS = ["q", "phase", "workload", "tenant"];

export class Instances extends Component {
  #rows = cached();
  #workloads = cached();

  #find(instances, { q = "", phase, workload, tenant = "" }, { key, isDescending }) {
    const text = q.trim().toLowerCase();
    const owner = tenant.trim().toLowerCase();
    const found = [];
    for (const instance of instances.values()) {
      const { name, uid, tenantId, workloadRef, poolStatus, ip, labels } = instance;
      if (phase && instance.phase !== phase) continue;
      if (workload && workloadRef !== workload) continue;
      if (owner && !includes(owner, tenantId)) continue;
      if (!matches(text, [name, tenantId, workloadRef, instance.phase, poolStatus, ip, uid], labels)) continue;
      found.push(instance);
    }
    return found.sort((a, b) => compare(a[key], b[key], isDescending) || compare(a.name, b.name, false));
  }

  render({ store, address, status, gridRef }) {
    const { state } = store.client;
    const { params } = address.current;
    const sort = sortOf(address, "name");
    const inputs = [...FILTERS.map((name) => params[name]), sort.key, sort.isDescending];
    const rows = this.#rows(state.version, inputs, () => this.#find(state.instances, params, sort));
    const workloads = this.#workloads(state.version, [], () => {
      const found = new Map();
      for (const { workloadRef } of state.instances.values()) {
        if (workloadRef) found.set(workloadRef, (found.get(workloadRef) ?? 0) + 1);
      }
      return new Map([...found].sort(([a], [b]) => compare(a, b, false)));
    });
    const phases = byPhase(PHASES, store.overview.phases);
    const now = store.now();
    const columns = [
      { key: "name", title: "Instance", sort: true, isHeader: true, class: "name", render: ({ name }) => html`<${Name} value=${name} />` },
      {
        key: "phase",
        title: "Phase",
        sort: true,
        class: "phases",
        render: ({ phase }) => html`<${Phase} value=${phase} />`,
      },
      {
        key: "workloadRef",
        title: "Workload",
        sort: true,
        class: "wide",
        render: ({ workloadRef }) => workloadRef ?? "–",
      },
      { key: "tenantId", title: "Tenant", sort: true, class: "tenant", render: ({ tenantId }) => tenantId ?? "–" },
      {
        key: "poolStatus",
        title: "Pool",
        sort: true,
        class: "wide phases",
        render: ({ poolStatus }) => html`<${Phase} value=${poolStatus} />`,
      },
      { key: "createdAt", title: "Age", sort: true, class: "wide age", render: ({ createdAt }) => age(createdAt, now) },
    ];
    const total = state.instances.size;
    return html`<section aria-label="Instances">
      <${Tools} address=${address} names=${FILTERS} search="name, tenant, ip, label=value">
        <${Choice} address=${address} name="phase" label="Phase" values=${phases} />
        <${Choice} address=${address} name="workload" label="Workload" values=${workloads} />
        <${Text} address=${address} name="tenant" label="Tenant" />
      </>
      <${Summary} text=${some(rows.length, total, "instance")} status=${status} store=${store}><${Clear} address=${address} names=${FILTERS} /></>
      <${Grid}
        handle=${gridRef} label="Instances" rows=${rows} columns=${columns} sort=${sort} onSort=${sort.onSort}
        rowKey=${({ uid }) => uid} rowProps=${({ name }) => ({ "data-instance": name })}
        onOpen=${({ name }) => address.show("instance", name)}
        empty=${total === 0 ? "There is no instance." : "No instance matches the filters."}
      />
    </section>`;
  }
}
