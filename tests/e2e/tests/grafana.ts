// A dashboard as Grafana's published types have it, as strict as they can be made: what a panel may
// say depends on its kind, and nothing may be said that Grafana does not know.
import type * as grafana from "@grafana/schema";
import type * as heatmap from "@grafana/schema/dist/esm/raw/composable/heatmap/panelcfg/x/HeatmapPanelCfg_types.gen";
import type * as stat from "@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen";
import type * as states from "@grafana/schema/dist/esm/raw/composable/statetimeline/panelcfg/x/StateTimelinePanelCfg_types.gen";
import type * as table from "@grafana/schema/dist/esm/raw/composable/table/panelcfg/x/TablePanelCfg_types.gen";
import type * as lines from "@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen";

// In JSON a value of an enum is its text.
type Json<T> = T extends string ? `${T}` : T extends object ? { [K in keyof T]: Json<T[K]> } : T;
// Grafana fills in what a panel leaves out.
type Given<T> = T extends object ? { [K in keyof T]?: Given<T[K]> } : T;

type FieldConfig<Custom> = Omit<grafana.FieldConfig, "custom"> & { custom?: Given<Custom> };
type Shown<Type extends string, Options, Custom = never> =
  Omit<grafana.Panel, "type" | "options" | "fieldConfig" | "targets"> & {
    type: Type;
    options: Given<Options>;
    fieldConfig: Omit<grafana.FieldConfigSource, "defaults"> & { defaults: FieldConfig<Custom> };
    targets: Target[];
  };
type Panel =
  | grafana.RowPanel
  | Shown<"stat", stat.Options>
  | Shown<"timeseries", lines.Options, lines.FieldConfig>
  | Shown<"state-timeline", states.Options, states.FieldConfig>
  | Shown<"heatmap", heatmap.Options, heatmap.FieldConfig>
  | Shown<"table", table.Options, table.FieldConfig>;

// The queries, annotations and variables of the data source Prometheus say more than the schema has:
// https://grafana.com/docs/grafana/latest/datasources/prometheus/
type Target = grafana.DataQuery & {
  expr: string;
  editorMode: "code" | "builder";
  format: "time_series" | "table" | "heatmap";
  instant: boolean;
  legendFormat: string;
  range: boolean;
};
type Annotation = grafana.AnnotationQuery & {
  expr: string;
  step: string;
  textFormat: string;
  titleFormat: string;
  useValueForTime: boolean;
};
type Variable = grafana.VariableModel & { definition?: string };

type Dashboard = Json<
  Omit<grafana.Dashboard, "panels" | "annotations" | "templating"> & {
    panels: Panel[];
    annotations: { list: Annotation[] };
    templating: { list: Variable[] };
  }
>;

