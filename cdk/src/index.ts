export * from './access';
export * from './audit';
export * from './bastion';
export * from './credential';
export * from './engine';
export * from './size';
export * from './target';
