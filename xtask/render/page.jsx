// One dashboard, drawn by Perses' panels. `draw.mjs` calls `drawDashboard` with what
// `xtask/src/dashboards/render/drawing.rs` made of a dashboard's JSON, and reads `panels` until all are drawn.
import { useEffect } from 'react';
import { createRoot } from 'react-dom/client';
import { Box, CssBaseline, ThemeProvider, Typography } from '@mui/material';
import { QueryClient, QueryClientProvider } from '@tanstack/react-query';
import { ChartsProvider, SnackbarProvider, generateChartsTheme, getTheme } from '@perses-dev/components';
import { Panel } from '@perses-dev/dashboards';
import {
  BuiltinVariableContext,
  DataQueriesProvider,
  DatasourceStoreContext,
  PluginRegistry,
  TimeRangeProvider,
  VariableContext,
  dynamicImportPluginLoader,
  useDataQueriesContext,
  useSuggestedStepMs,
} from '@perses-dev/plugin-system';
import * as prometheus from '@perses-dev/prometheus-plugin';
import * as stat from '@perses-dev/stat-chart-plugin';
import * as timeSeries from '@perses-dev/timeseries-chart-plugin';

// As Grafana lays panels out: so many columns, rows of this height, this far apart.
const COLUMNS = 24;
const ROW = 30;
const GAP = 8;

const theme = getTheme('light');
const chartsTheme = generateChartsTheme(theme, {});
const plugins = dynamicImportPluginLoader(
  [prometheus, stat, timeSeries].map((plugin) => ({
    resource: plugin.getPluginModule(),
    importPlugin: () => Promise.resolve(plugin),
  }))
);
// A query that fails says so at once.
const queries = new QueryClient({ defaultOptions: { queries: { refetchOnWindowFocus: false, retry: false } } });

// The page is Prometheus' own, so its API is next door.
const source = (scrapeInterval) => {
  const plugin = { kind: 'PrometheusDatasource', spec: { directUrl: '', scrapeInterval } };
  return {
    getDatasource: () => Promise.resolve({ default: true, plugin }),
    getDatasourceClient: () => Promise.resolve(prometheus.PrometheusDatasource.createClient(plugin.spec, {})),
    listDatasourceSelectItems: () => Promise.resolve([]),
    getLocalDatasources: () => ({}),
    setLocalDatasources: () => {},
    getSavedDatasources: () => ({}),
    setSavedDatasources: () => {},
  };
};

// What each panel came to, by its place in the list.
window.panels = {};

function Watched({ index, definition }) {
  const { queryResults, isFetching } = useDataQueriesContext();
  useEffect(() => {
    window.panels[index] = {
      title: definition.spec.display.name,
      done: !isFetching && queryResults.every((query) => query.data || query.error),
      queries: queryResults.map((query) => ({
        expr: query.definition.spec.plugin.spec.query,
        error: query.error ? String(query.error.message ?? query.error) : null,
        series: query.data?.series.length ?? 0,
      })),
    };
  });
  return <Panel definition={definition} />;
}

function Queried({ index, definition, instant, width }) {
  const suggestedStepMs = useSuggestedStepMs(width);
  return (
    <DataQueriesProvider
      definitions={definition.spec.queries.map((query) => query.spec.plugin)}
      options={{ suggestedStepMs, mode: instant ? 'instant' : 'range' }}
    >
      <Watched index={index} definition={definition} />
    </DataQueriesProvider>
  );
}

function Page({ drawing, width }) {
  const column = (width + GAP) / COLUMNS;
  return (
    <Box sx={{ padding: `${GAP}px`, width: width + 2 * GAP, backgroundColor: theme.palette.background.default }}>
      <Typography variant="h1">{drawing.title}</Typography>
      <Typography variant="subtitle1" sx={{ marginBottom: 1 }}>{drawing.description}</Typography>
      <Box
        sx={{
          display: 'grid',
          gridTemplateColumns: `repeat(${COLUMNS}, minmax(0, 1fr))`,
          gridAutoRows: `${ROW}px`,
          gap: `${GAP}px`,
          // A title that its unit stands in is longer than the dashboard's own.
          '& header h6': { fontSize: 14 },
        }}
      >
        {drawing.items.map(({ place, row, panel }, index) => (
          <Box
            key={index}
            data-panel={panel && index}
            sx={{
              gridColumn: `${place.x + 1} / span ${place.w}`,
              gridRow: `${place.y + 1} / span ${place.h}`,
            }}
          >
            {row !== undefined && <Typography variant="h2" sx={{ lineHeight: `${ROW}px` }}>{row}</Typography>}
            {panel && <Queried index={index} {...panel} width={column * place.w - GAP} />}
          </Box>
        ))}
      </Box>
    </Box>
  );
}

window.drawDashboard = (drawing, width) => {
  const now = Date.now();
  const range = { start: new Date(now - drawing.seconds * 1000), end: new Date(now) };
  createRoot(document.getElementById('page')).render(
    <ThemeProvider theme={theme}>
      <CssBaseline />
      <ChartsProvider chartsTheme={chartsTheme}>
        <SnackbarProvider>
          <PluginRegistry pluginLoader={plugins}>
            <QueryClientProvider client={queries}>
              <TimeRangeProvider timeRange={range}>
                <VariableContext.Provider value={{ state: {} }}>
                  <BuiltinVariableContext.Provider value={{ variables: [] }}>
                    <DatasourceStoreContext.Provider value={source(drawing.scrape_interval)}>
                      <Page drawing={drawing} width={width - 2 * GAP} />
                    </DatasourceStoreContext.Provider>
                  </BuiltinVariableContext.Provider>
                </VariableContext.Provider>
              </TimeRangeProvider>
            </QueryClientProvider>
          </PluginRegistry>
        </SnackbarProvider>
      </ChartsProvider>
    </ThemeProvider>
  );
};
